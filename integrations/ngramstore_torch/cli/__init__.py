"""The commands train, export, evaluate and generate: a file each, and what they share."""
