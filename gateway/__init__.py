"""Serving: answers a question with the smallest model that keeps the request's promise."""
