"""Teachers: QA checkpoints of any family, run once, with answers mapped to a student's tokens."""
