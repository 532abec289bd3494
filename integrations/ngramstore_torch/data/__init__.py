"""Tokens: corpora tagged with their f-grams and cut into batches, and who a tokenizer and a vocabulary are."""
