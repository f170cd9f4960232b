"""Ranges, scales and rounding of weights."""
