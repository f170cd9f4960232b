"""A plan that can be carried out: what it takes, where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from harness.plan.estimate import Estimate
    from harness.plan.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A plan with what it takes and where it goes."""

    plan: Plan
    guess: Estimate
    folder: Path
