"""Training transforms and clips of a block against full precision."""
