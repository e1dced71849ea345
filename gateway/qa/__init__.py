"""Text to model inputs, and model outputs to an answer."""
