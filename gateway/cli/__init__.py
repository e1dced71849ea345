"""The `bertier` command."""
