"""Comparisons that a reader can rerun: searches, labels, engines, the fp32 reference."""
