"""The tables of a model's checkpoint as a store: read in place, or packed."""
