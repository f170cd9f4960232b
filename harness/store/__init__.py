"""Results on disk: the store by key, keys, records, and where numbers come from."""
