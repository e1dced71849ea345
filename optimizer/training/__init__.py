"""A training run: loop, losses, cached outputs of the teacher."""
