"""The `bertier-optimize` command."""
