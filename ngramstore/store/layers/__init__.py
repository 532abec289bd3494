"""The files a store is made of: manifest, index, rows, tokens; a layer joins them, and layers merge."""
