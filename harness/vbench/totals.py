"""The scores VBench sums its dimensions up in: quality, semantic, total."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.vbench.dimensions import DIMENSIONS, QUALITY, SEMANTIC

if TYPE_CHECKING:
    from collections.abc import Mapping

QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4.0, 1.0  # scripts/constant.py of the official repository


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """The three scores, or what is missing for them.

    Attributes:
        quality: Weighted mean of the normalised quality dimensions.
        semantic: The same of the semantic ones.
        total: Weighted mean of both.
        missing: Dimensions without an official aggregate; then all three scores are None.
    """

    quality: float | None
    semantic: float | None
    total: float | None
    missing: tuple[str, ...]


def totals(official: Mapping[str, float | None]) -> Totals:
    """Sum up the official aggregates of all 16 dimensions.

    A dimension that is missing makes the scores undefined: the official script would count it
    as 0. Nothing is clamped, as there.

    Args:
        official: Aggregate by dimension on the scale 0 to 1; flickering of static clips only.
    """
    values = {name: value for name, value in official.items() if value is not None}
    missing = tuple(name for name in DIMENSIONS if name not in values)
    if missing:
        return Totals(quality=None, semantic=None, total=None, missing=missing)
    quality, semantic = _mean(values, QUALITY), _mean(values, SEMANTIC)
    total = (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (
        QUALITY_WEIGHT + SEMANTIC_WEIGHT
    )
    return Totals(quality=quality, semantic=semantic, total=total, missing=())


def _mean(values: Mapping[str, float], kind: str) -> float:
    chosen = [d for d in DIMENSIONS.values() if d.kind == kind]
    normed = [d.weight * (values[d.name] - d.low) / (d.high - d.low) for d in chosen]
    return math.fsum(normed) / math.fsum(d.weight for d in chosen)
