"""From finished students to a model repository."""
