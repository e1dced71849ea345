"""The life of one request, from its question to its answer. Knows no protocol."""
