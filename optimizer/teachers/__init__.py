"""Question-answering checkpoints of any family as teachers: asked once, mapped to a student's tokens."""
