"""Pretrained encoders under short names: where they come from, fetched once, kept in a cache."""
