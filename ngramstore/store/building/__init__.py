"""Rows in any order, from anywhere, into a new store."""
