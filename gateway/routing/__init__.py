"""Which plan answers a request, and which requests are refused."""
