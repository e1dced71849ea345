"""What a search, a distillation, a threshold and an engine are worth: two things beside each other, with intervals."""
