"""Two gateways and two Tritons behind a balancer: what callers notice when one dies, or changes."""
