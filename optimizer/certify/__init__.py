"""Certificates: bounds, strata, cascades, plans."""
