"""Which (prompt, timestep) samples of the pool a method without a rule of its own takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.models.block_input import Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.models.trajectories import CalibrationPool


def uniform_samples(pool: CalibrationPool, count: int, timesteps: int) -> list[Sample]:
    """Take equally spaced timesteps, each with the same number of prompts, taken in turn.

    Args:
        pool: Recorded trajectories.
        count: Samples wanted; fewer come back where the pool is smaller.
        timesteps: Timesteps wanted.
    """
    spread = min(timesteps, pool.steps, count)
    steps = torch.linspace(0, pool.steps - 1, spread).round().long().tolist()
    each = min(-(-count // len(steps)), len(pool.prompts))
    # round by round, so that a count that is no multiple of the timesteps takes from all alike
    chosen = [
        Sample((i * each + j) % len(pool.prompts), step)
        for j in range(each)
        for i, step in enumerate(steps)
    ]
    return sorted(chosen[:count])


def shortage(chosen: Sequence[Sample], asked: int) -> tuple[str, ...]:
    """Note for the report where the rule or the pool gave fewer samples than were asked for."""
    if len(chosen) == asked:
        return ()
    return (f"calibrated on {len(chosen)} samples of {asked} asked for: the pool has no more",)
