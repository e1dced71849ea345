"""What callers notice when parts die, change or are asked for too much."""
