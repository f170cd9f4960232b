"""Artifact: a quantized model on disk, from its making to its diagnosis."""
