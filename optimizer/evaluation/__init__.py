"""What answers are worth, as served."""
