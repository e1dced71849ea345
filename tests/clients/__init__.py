"""Other people's clients against a real gateway: `make prove-clients`. They run in an environment of their own."""
