"""A trained A_f into a store: every f-gram's row, resumable, rounded by what the decoder minds."""
