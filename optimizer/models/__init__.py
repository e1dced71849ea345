"""BERTs in PyTorch: how they are read, cut, made smaller, and made elastic."""
