"""What a reader of VBench numbers must be told before comparing them with others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.vbench.aggregate import UNFILTERED
from harness.vbench.dimensions import DIMENSIONS
from harness.vbench.suites import EIGHT_SUITE, FLICKERING, FULL_SUITE, SAMPLES, is_vbench, samples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.spec import PromptSuite
    from harness.vbench.aggregate import Flickering

LONG_SECONDS = 5.0
"""From this length on the authors of VBench ask for VBench-Long (their answers in the tracker)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipMaking:
    """How the clips of a row of the table were made.

    Attributes:
        label: What the table calls the row.
        fps: Frames per second of the files.
        model_fps: Frames per second the model was made for; None where it does not say.
        frames: Frames of a clip.
        encoder: Codec and its settings, one text; empty where unknown.
    """

    label: str
    fps: float
    model_fps: float | None
    frames: int
    encoder: str


def cautions(
    rows: Sequence[ClipMaking],
    *,
    suite: PromptSuite,
    dimensions: Sequence[str],
    made: Mapping[str, int],
    flickering: Flickering | None,
) -> list[str]:
    """Warn of what keeps VBench's numbers from being compared, one line each.

    Args:
        rows: The rows of the table.
        suite: What they were made on.
        dimensions: Metrics in the table; nothing is said without one of VBench's.
        made: Clips of a row by prompt id.
        flickering: What flickering was averaged over; None where it is not in the table.
    """
    if not set(dimensions) & {*DIMENSIONS, UNFILTERED}:
        return []
    lines = [*_protocol(suite, made), *_lengths(rows), *_rates(rows), *_encoders(rows)]
    if flickering is not None and flickering.reason:
        lines.append(
            f"{flickering.metric}: over all clips, not only static ones, hence not VBench's "
            f"{FLICKERING}: {flickering.reason}"
        )
    elif flickering is not None and flickering.short:
        none = sum(count == 0 for count in flickering.short.values())
        lines.append(
            f"{FLICKERING}: {len(flickering.short)} prompts have fewer than {SAMPLES} static "
            f"clips, {none} of them none"
        )
    return lines


def _protocol(suite: PromptSuite, made: Mapping[str, int]) -> list[str]:
    if not is_vbench(suite):
        return [
            f"suite '{suite.name}' is not VBench's: compare these numbers within this table, not "
            "with published ones"
        ]
    lines = []
    if suite.name == EIGHT_SUITE:
        lines.append(
            f"suite '{suite.name}': one clip a prompt as in quantization papers, not the "
            f"{SAMPLES} of VBench's own tables"
        )
    elif suite.name != FULL_SUITE:
        lines.append(
            f"suite '{suite.name}' is a part of VBench's prompts: for a quick look, not to be "
            "quoted as VBench numbers"
        )
    short = [p for p in suite.prompts if made.get(p.id, 0) < samples(p)]
    if short:
        first = short[0]
        lines.append(
            f"{len(short)} of {len(suite.prompts)} prompts have fewer clips than the protocol "
            f"({first.id}: {made.get(first.id, 0)} of {samples(first)})"
        )
    return lines


def _lengths(rows: Sequence[ClipMaking]) -> list[str]:
    long = [row for row in rows if row.fps > 0 and row.frames / row.fps >= LONG_SECONDS]
    if not long:
        return []
    seconds = max(row.frames / row.fps for row in long)
    return [
        f"{_names(long)}: clips of {seconds:.1f} s; from {LONG_SECONDS:g} s on use VBench-Long, "
        "these numbers are not comparable with published ones"
    ]


def _rates(rows: Sequence[ClipMaking]) -> list[str]:
    found: dict[tuple[float, float], list[ClipMaking]] = {}
    for row in rows:
        if row.model_fps is not None and row.fps != row.model_fps:
            found.setdefault((row.fps, row.model_fps), []).append(row)
    return [
        f"{_names(group)}: clips at {fps:g} fps, the model makes {own:g}: dynamic_degree depends "
        "on the rate"
        for (fps, own), group in found.items()
    ]


def _encoders(rows: Sequence[ClipMaking]) -> list[str]:
    found: dict[str, list[ClipMaking]] = {}
    for row in rows:
        found.setdefault(row.encoder or "unknown", []).append(row)
    if len(found) < 2:
        return []
    parts = "; ".join(f"{_names(group)}: {encoder}" for encoder, group in found.items())
    return [
        f"rows were encoded differently ({parts}): imaging_quality and flickering see the "
        "encoder as well"
    ]


def _names(rows: Sequence[ClipMaking]) -> str:
    """Labels, at most three."""
    labels = [row.label for row in rows]
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
