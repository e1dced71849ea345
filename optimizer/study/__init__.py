"""What a study is: its configuration, its search space, its stages on disk."""
