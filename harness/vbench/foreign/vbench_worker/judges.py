"""What a judge is: one dimension, asked of one clip, with models that are already loaded.

A judge calls the official function of its dimension on a list of one clip. ``light``, ``heavy`` and
``detector`` each export ``JUDGES`` and ``LOADERS``; they import ``vbench`` inside their functions,
so that a dimension whose module does not import is lost alone.
"""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from vbench_worker.clips import Clip
    from vbench_worker.protocol import Want

FRAMES = {
    "subject_consistency": 2,
    "background_consistency": 2,
    "temporal_flickering": 2,
    "motion_smoothness": 3,
    "flow_score": 2,
}
"""Frames that a clip must have where it is more than one: with fewer the official code divides by
zero, takes the mean of nothing or fails an assertion."""

SIDES = {
    "motion_smoothness": 113,
    "dynamic_degree": 121,
    "static_filter": 121,
    "flow_score": 121,
}
"""Pixels that the shorter side must have. AMT pads to a multiple of 16 and RAFT to one of 8; below
128 the coarsest of their four correlation maps, at 1/64 of the size, is one pixel wide, a position
in it is divided by its width less one, and all flow is NaN. The official code takes that for a
static clip, and for a black interpolated frame."""


def refusal(dimension: str, shape: tuple[int, ...]) -> str | None:
    """Why a dimension has no value for a clip of shape [frames, height, width, 3]."""
    frames, height, width = shape[:3]
    if frames < (needed := FRAMES.get(dimension, 1)):
        return f"has {frames} frame{'' if frames == 1 else 's'}, needs {needed}"
    if min(height, width) < (side := SIDES.get(dimension, 1)):
        return f"is {width}x{height} pixels, needs {side} on each side"
    return None


class UnscorableError(Exception):
    """The clip has a property that leaves this value undefined; another run will not change it."""


class UnsupportedError(Exception):
    """This environment cannot compute the dimension."""


class MissingFileError(Exception):
    """A file is not where the official package wants it; nothing is downloaded while scoring."""


class ModelError(Exception):
    """A model could not be loaded; ``__cause__`` says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How models are loaded and run.

    Attributes:
        precision: ``float32`` or ``bfloat16``.
        weights: The folder that the official package calls ``VBENCH_CACHE_DIR``.
        batch: Frames or pairs per forward pass; 1 leaves every official loop as it is.
    """

    device: torch.device
    precision: str
    weights: Path
    batch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One value of one clip.

    Attributes:
        value: On the scale 0..1, booleans as 0 or 1.
        weight: What the official aggregate weighs this clip by.
        valid: False where the official code leaves the clip out of the aggregate.
        facts: The official raw values and whatever else belongs to the record; JSON.
    """

    value: float
    weight: float = 1.0
    valid: bool = True
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Shelf:
    """Models, each loaded once for all clips and all dimensions.

    Attributes:
        loads: How often each model was loaded.
        pairs: Pairs of frames that RAFT ``run`` on, and ``of`` how many the untouched loop would.
    """

    settings: Settings
    loaders: dict[str, Callable[[Settings], Any]]
    loads: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    _models: dict[str, Any] = field(default_factory=dict)
    _failed: dict[str, Exception] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """The model of that name.

        Raises:
            ModelError: If it does not load; it is not tried a second time.
        """
        if name not in self._models and name not in self._failed:
            self.loads[name] += 1
            try:
                self._models[name] = self.loaders[name](self.settings)
            except Exception as error:
                traceback.print_exc()
                # Its frames would keep what was half loaded.
                self._failed[name] = error.with_traceback(None)
        if name in self._failed:
            raise ModelError(name) from self._failed[name]
        return self._models[name]


class Judge(Protocol):
    """One dimension.

    Attributes:
        name: The dimension.
        models: Names in the shelf that it may ask for.
    """

    name: str
    models: tuple[str, ...]

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip.

        Raises:
            UnscorableError: If the clip has no such value.
            ModelError: If a model does not load.
        """
        ...


def all_judges() -> dict[str, Judge]:
    """The judges of all dimensions that this worker knows."""
    from vbench_worker import detector, heavy, light

    return {**light.JUDGES, **heavy.JUDGES, **detector.JUDGES}


def all_loaders() -> dict[str, Callable[[Settings], Any]]:
    """The loaders of all models that the judges ask for."""
    from vbench_worker import detector, heavy, light

    return {**light.LOADERS, **heavy.LOADERS, **detector.LOADERS}
