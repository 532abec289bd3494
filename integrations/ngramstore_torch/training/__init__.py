"""Training: the loop, its settings and batches, and checkpoints that survive a crash."""
