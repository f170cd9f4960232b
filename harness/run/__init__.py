"""Run: the workers of a plan, and the folder that a run leaves."""
