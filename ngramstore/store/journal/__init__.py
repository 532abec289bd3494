"""Changes that are not published yet: RocksDB behind checks of our own."""
