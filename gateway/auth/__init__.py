"""API keys at work, quotas, TLS."""
