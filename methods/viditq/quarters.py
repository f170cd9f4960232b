"""The four quarters of a sampling trajectory, which ViDiT-Q (arXiv 2406.02540) treats apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Sequence

QUARTERS = 4  # ViDiT-Q, metric-decoupled mixed precision: the trajectory in four equal parts


def steps_in(quarter: int, steps: int) -> int:
    """Number of steps in a quarter of the trajectory."""
    return sum(quarter_of(step, steps) == quarter for step in range(steps))


def quarter_of(step: int, steps: int) -> int:
    """Quarter of the trajectory that a step lies in."""
    return step * QUARTERS // steps


def quarter_bounds(timesteps: Sequence[float]) -> tuple[float, ...]:
    """Timesteps between the quarters, half way between the two steps that a bound divides.

    Raises:
        HarnessError: There are fewer steps than quarters.
    """
    steps = len(timesteps)
    if steps < QUARTERS:
        raise HarnessError(
            f"metric-decoupled mixed precision cuts the trajectory in {QUARTERS} parts, "
            f"it has {steps} steps",
            f"sample with {QUARTERS} steps or more, or set mixed = 'none'",
        )
    firsts = [-(-quarter * steps // QUARTERS) for quarter in range(1, QUARTERS)]
    return tuple((timesteps[first - 1] + timesteps[first]) / 2 for first in firsts)
