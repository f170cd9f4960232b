"""Models: the table of known models, their families and the bundled model."""
