"""Locust users of a gateway."""
