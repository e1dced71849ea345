"""What the gateway, its observability and its authentication cost."""
