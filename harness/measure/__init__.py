"""Measure: latency and memory of what really runs."""
