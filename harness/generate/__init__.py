"""Generate: clips from a pipeline and noise, and their files."""
