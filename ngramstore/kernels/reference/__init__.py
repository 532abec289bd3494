"""The meaning of each native kernel, in plain numpy."""
