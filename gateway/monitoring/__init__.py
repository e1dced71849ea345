"""Whether certificates are still true of the traffic."""
