"""Tokens: corpora tagged with their f-grams and cut into batches, and digests that identify tokenizers and vocabularies."""
