"""Other servers with the same model, encoding and decoding, and a contest between them and ours."""
