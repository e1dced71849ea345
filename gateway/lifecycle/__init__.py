"""What is served now and next: preparation, switch, readiness, shutdown."""
