"""A damaged store: every fault found, every good row saved."""
