"""What a plug-in tests itself with: the conformance batteries and miniature pipelines."""

from __future__ import annotations

from harness.testing.conformance import (
    MINIATURES,
    PROMPTS,
    TINY_GEN,
    WORDS,
    Bench,
    FamilyConformance,
    MethodConformance,
    tiny_pipeline,
    widths_of,
)

__all__ = [
    "MINIATURES",
    "PROMPTS",
    "TINY_GEN",
    "WORDS",
    "Bench",
    "FamilyConformance",
    "MethodConformance",
    "tiny_pipeline",
    "widths_of",
]
