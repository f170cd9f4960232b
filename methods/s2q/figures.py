"""Plots a method leaves beside its artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from harness.quant import Sample


def plot_chosen_timesteps(
    path: Path, chosen: Sequence[Sample], score: Tensor, timesteps: Sequence[float], title: str
) -> None:
    """Draw the score of every candidate and mark the chosen ones.

    Args:
        path: PNG to write.
        chosen: Selected samples.
        score: ``[prompts, steps]``.
        timesteps: Timestep value at each step.
        title: Heading.
    """
    figure, (top, bottom) = _axes(2)
    for row in score:
        top.plot(range(len(timesteps)), row.tolist(), color="0.75", linewidth=0.8)
    values = [float(score[s]) for s in chosen]
    top.scatter([s.step for s in chosen], values, s=14, color="C3", zorder=3)
    top.set(ylabel="score", title=title)
    counts = [sum(s.step == i for s in chosen) for i in range(len(timesteps))]
    bottom.bar(range(len(timesteps)), counts, color="C0")
    bottom.set(ylabel="chosen", xlabel="sampling step, its timestep below it")
    bottom.set_xticks(
        range(len(timesteps)), [f"{i}\n{t:.0f}" for i, t in enumerate(timesteps)], fontsize=6
    )
    figure.savefig(path, dpi=120)


def plot_token_mass(path: Path, masses: Sequence[Tensor], names: Sequence[str]) -> None:
    """Draw the cumulative share of attention mass over tokens sorted by mass, a curve a block.

    Args:
        path: PNG to write.
        masses: One ``[tokens]`` for each block, averaged over samples.
        names: Block names.
    """
    figure, (axis,) = _axes(1)
    for mass, name in zip(masses, names, strict=True):
        share = mass.sort(descending=True).values.cumsum(0) / mass.sum()
        axis.plot([(i + 1) / len(share) for i in range(len(share))], share.tolist(), label=name)
    axis.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    axis.set(xlabel="share of tokens, heaviest first", ylabel="share of attention mass")
    axis.set(title="attention mass by token (S2Q-VDiT sec. 3.3)")
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def _axes(rows: int) -> tuple[Figure, list[Axes]]:
    """One figure with ``rows`` axes below each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6 * rows + 0.8), layout="constrained")
    return figure, list(figure.subplots(rows, 1, squeeze=False)[:, 0])
