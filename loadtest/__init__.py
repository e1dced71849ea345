"""Measures a running system: agreement, invariance, overhead, what each SLO gets."""
