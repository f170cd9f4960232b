"""From per-clip scores to numbers of a table: ours, and the official one beside it.

Ours is the mean over prompts of the mean over a prompt's clips, so that a prompt counts once
whatever its number of clips. The official one is what the package prints on a single process: its
multi-process code averages differently in three dimensions and is not reproduced. Sums are exact
(``math.fsum``), so that neither order nor the number of shards changes a bit; the official running
sums round, hence may differ from these in the last digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.vbench.dimensions import DIMENSIONS
from harness.vbench.suites import FLICKERING, SAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNFILTERED = f"{FLICKERING}_unfiltered"

_SAMPLED = "mean over sampled frames, all clips together"
FORMULA = dict.fromkeys(DIMENSIONS, "mean over clips") | {
    "subject_consistency": "mean over pairs of frames, all clips together",
    "background_consistency": "mean over pairs of frames, all clips together",
    "object_class": _SAMPLED,
    "multiple_objects": _SAMPLED,
    "spatial_relationship": _SAMPLED,
    "scene": _SAMPLED,
    "appearance_style": "mean over frames, all clips together",
    "color": "mean over the clips in which the object was found in some color",
}
"""What the official aggregate of one process averages over (vbench 0.1.5, ``<dimension>.py``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScore:
    """One dimension's judgement of one clip.

    Attributes:
        clip: Id of the clip, unique among those of a table row.
        prompt: Id of its prompt.
        sample: Its number among the prompt's clips, from 0.
        value: On the scale 0 to 1.
        weight: What the official aggregate weighs the clip by (frames, pairs of frames, or 1).
        valid: False where the official code leaves the clip out.
        strict: The value where what was not found counts as wrong; None where there is no such
            variant.
    """

    clip: str
    prompt: str
    sample: int
    value: float
    weight: float = 1.0
    valid: bool = True
    strict: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregate:
    """A dimension over the clips of a row.

    Attributes:
        ours: Mean over prompts of the mean over valid clips; None without a valid clip.
        official: The package's own number; None without a valid clip.
        strict: As ``ours`` over all clips, with the strict values and 0 for clips left out; None
            where that is no variant of the dimension's value.
        n_valid: Clips that count.
        n: Clips that were judged.
        prompts: Prompts with a clip that counts.
    """

    ours: float | None
    official: float | None
    strict: float | None
    n_valid: int
    n: int
    prompts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Flickering:
    """Which clips flickering is averaged over.

    Attributes:
        metric: ``temporal_flickering`` over static clips, otherwise ``UNFILTERED``.
        scores: The clips that count.
        short: Static clips by prompt, for prompts with fewer than the official five.
        reason: Why the clips are not filtered; empty where they are.
    """

    metric: str
    scores: tuple[ClipScore, ...]
    short: dict[str, int]
    reason: str


def aggregate(scores: Iterable[ClipScore]) -> Aggregate:
    """Average a dimension.

    Args:
        scores: The union of all shards, in any order; a clip may come twice with one judgement.

    Raises:
        HarnessError: A clip comes with two judgements.
    """
    unique = _unique(scores)
    valid = [score for score in unique if score.valid]
    strict = None
    if any(score.strict is not None or not score.valid for score in unique):
        strict = _mean_over_prompts([(score.prompt, _strict(score)) for score in unique])
    weight = math.fsum(score.weight for score in valid)
    total = math.fsum(score.weight * score.value for score in valid)
    return Aggregate(
        ours=_mean_over_prompts([(score.prompt, score.value) for score in valid]),
        official=total / weight if weight else None,
        strict=strict,
        n_valid=len(valid),
        n=len(unique),
        prompts=len({score.prompt for score in valid}),
    )


def flickering(scores: Iterable[ClipScore], static: Mapping[str, bool] | None) -> Flickering:
    """Choose the clips flickering is averaged over: of each prompt the first five static ones.

    "First" is by file name, hence 0, 1, 10, 11, ..., 2, as in the official filter
    (vbench 0.1.5, ``cli/static_filter.py``).

    Args:
        scores: Flickering of every clip.
        static: What the static filter says, by clip; None on a suite that is not to be filtered.

    Raises:
        HarnessError: A clip comes with two judgements.
    """
    unique = _unique(scores)
    known = [score for score in unique if static is not None and score.clip in static]
    if static is None or len(known) < len(unique):
        reason = "the suite does not make enough clips for VBench's static filter"
        if static is not None:
            reason = f"the static filter judged {len(known)} of {len(unique)} clips"
        return Flickering(metric=UNFILTERED, scores=tuple(unique), short={}, reason=reason)
    kept: dict[str, list[ClipScore]] = {score.prompt: [] for score in unique}
    for score in sorted(unique, key=lambda s: (s.prompt, f"{s.sample}.mp4")):
        if static[score.clip] and len(kept[score.prompt]) < SAMPLES:
            kept[score.prompt].append(score)
    return Flickering(
        metric=FLICKERING,
        scores=tuple(score for found in kept.values() for score in found),
        short={prompt: len(found) for prompt, found in kept.items() if len(found) < SAMPLES},
        reason="",
    )


def _unique(scores: Iterable[ClipScore]) -> list[ClipScore]:
    """Each clip once, sorted by id."""
    by_clip: dict[str, ClipScore] = {}
    for score in scores:
        if by_clip.setdefault(score.clip, score) != score:
            raise HarnessError(
                f"clip '{score.clip}' was judged twice with different results "
                f"({by_clip[score.clip].value} and {score.value})",
                "shards of one row must come from one scorer, one device and one set of weights",
            )
    return [by_clip[clip] for clip in sorted(by_clip)]


def _strict(score: ClipScore) -> float:
    if score.strict is not None:
        return score.strict
    return score.value if score.valid else 0.0


def _mean_over_prompts(values: list[tuple[str, float]]) -> float | None:
    by_prompt: dict[str, list[float]] = {}
    for prompt, value in values:
        by_prompt.setdefault(prompt, []).append(value)
    means = [math.fsum(found) / len(found) for found in by_prompt.values()]
    return math.fsum(means) / len(means) if means else None
