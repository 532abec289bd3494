"""The store in front of a decoder: embedding modules, look-ups ahead of need, histories of tokens, generation."""
