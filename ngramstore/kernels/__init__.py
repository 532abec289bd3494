"""Compiled kernels (`native`) and what they mean in plain numpy (`reference`), under the same names."""
