"""Many hosts in virtual time: gateways that share nothing choose among many Tritons."""
