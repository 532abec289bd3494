"""What the one writer does to a published store: puts, flush, compaction."""
