"""Plan: an experiment resolved against the store, what is left to make."""
