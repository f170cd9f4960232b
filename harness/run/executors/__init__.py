"""Executors: where workers are started."""
