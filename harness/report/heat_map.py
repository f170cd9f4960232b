"""A heat map of errors: layers down, timesteps across."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.artifact.diagnose import LayerError

_FLOOR = 1e-12  # what an error of zero is drawn as


def draw_heat_map(path: Path, errors: Sequence[LayerError], title: str) -> None:
    """Draw the relative error of every layer at every step, on a scale of powers of ten.

    Args:
        path: PNG to write.
        errors: One for each layer and step.
        title: Heading.
    """
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(e.layer for e in errors))
    steps = sorted({(e.step, e.timestep) for e in errors})
    value = {(e.layer, e.step): e.error for e in errors}
    # a layer of one of two experts has no value at the other's steps: its place stays empty
    grid = [
        [
            math.log10(max(_FLOOR, value[layer, step])) if (layer, step) in value else math.nan
            for step, _ in steps
        ]
        for layer in layers
    ]
    height = min(40.0, 1.6 + 0.16 * len(layers))
    figure = Figure(figsize=(6 + 0.16 * len(steps), height), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(grid, aspect="auto", cmap="viridis", interpolation="nearest")
    axis.set_yticks(range(len(layers)), layers, fontsize=5)
    axis.set_xticks(range(len(steps)), [f"{t:.0f}" for _, t in steps], fontsize=6, rotation=90)
    axis.set(xlabel="timestep", title=title)
    figure.colorbar(image, ax=axis, label="log10 of the relative squared error")
    figure.savefig(path, dpi=140)
