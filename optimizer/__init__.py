"""Offline: trains, quantizes, certifies and publishes the models that the gateway serves."""
