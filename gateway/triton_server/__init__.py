"""A Triton on this host: found, started, supervised, stopped."""
