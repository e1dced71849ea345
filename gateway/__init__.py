"""Serving: answers a question with the smallest model that meets the request's SLO."""
