"""Scores clips with the official package; runs in the scoring environment, never in ours."""
