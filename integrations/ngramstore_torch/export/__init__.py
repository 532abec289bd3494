"""A trained A_f into a store: every f-gram's row, resumable, int4 rounded by the decoder's sensitivity to errors."""
