"""How long the stages of a model take: as the store's journal has it, else by counting operations.

A count is turned into hours of one named device at a rate that is assumed, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.plan.history import recent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from harness.plan.history import History
    from harness.plan.memory import Sizes
    from harness.plan.registry import MethodFacts

DEVICE = "A100"
HALF_FLOPS, SINGLE_FLOPS = 0.4 * 312e12, 0.7 * 19.5e12
"""Of its dense peaks, 312 TFLOP/s in bfloat16 and 19.5 in float32 (NVIDIA A100 datasheet), what a
whole pass sustains: an assumption."""

STEP_PASSES = 6.6
"""Passes of a block that one training step of it takes as long as: 15.4 s to 2.32 s, one block of
CogVideoX-2B's width on one processor thread (``tools/real_models_timed.json``)."""

UNKNOWN = "unknown"
_ROUNDS = "no pass of the model: what rounding takes is not counted"
_JOURNAL = "median in this store's journal, whatever settings and device it had"

Row = tuple[str, str, str]
"""Stage, time, and where the time is from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """One method at one width.

    Attributes:
        label: What the table prints.
        bits: Width.
        facts: The method's, its options filled in.
    """

    label: str
    bits: str
    facts: MethodFacts


def stage_rows(
    model: str, sizes: Sizes | None, taken: History, calibrations: Iterable[Calibration]
) -> list[Row]:
    """Time of each stage.

    Args:
        model: Its name.
        sizes: What operations are counted from; None where they are not known.
        taken: What earlier work took.
        calibrations: Methods to be calibrated.
    """
    pass_s = None if sizes is None else _trajectory_s(sizes)
    rows = [_timed("encode a text", recent(taken, f"text:{model}"))]
    clip = recent(taken, f"model:{model}")
    if clip is not None:
        rows.append(_timed("denoise and decode a clip", clip))
    else:
        rows += [_estimated("denoise a clip", pass_s, sizes), _timed("decode a clip", None)]
    pool = recent(taken, f"pool:{model}")
    if pool is not None:
        rows.append(_timed("record the calibration", pool))
    else:
        rows.append(_estimated("record a calibration prompt", pass_s, sizes))
    return rows + [_calibration(model, sizes, taken, found) for found in calibrations]


def work_flops(
    work: Mapping[str, Any], sizes: Sizes, *, step_passes: float = STEP_PASSES, both: bool = False
) -> tuple[float, float]:
    """Operations of a calibration forward alone, and of its training steps.

    Args:
        work: Fields of ``harness.method.Work``.
        sizes: The model.
        step_passes: Passes that a training step is worth.
        both: Whether a sample holds all guidance branches.
    """
    shape = sizes.shape
    one = shape.row_flops * (shape.rows * shape.calls if both else 1)
    forward = work["passes"] * work["samples"] + work["denoiser_passes"]
    return forward * one, step_passes * (work["steps"] + work["denoiser_steps"]) * one


def duration(seconds: float) -> str:
    """A time in words."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length * 1.5:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.2g} s"


def rate(sizes: Sizes) -> float:
    """Operations a second that a forward pass is assumed to sustain."""
    return SINGLE_FLOPS if sizes.gen.dtype == "float32" else HALF_FLOPS


def _trajectory_s(sizes: Sizes) -> float:
    """Seconds of all steps and guidance branches of one clip."""
    shape = sizes.shape
    return sizes.gen.steps * shape.rows * shape.calls * shape.row_flops / rate(sizes)


def _calibration(model: str, sizes: Sizes | None, taken: History, one: Calibration) -> Row:
    name = f"quantize {one.label} {one.bits}"
    seconds = recent(taken, f"artifact:{model}--{one.label}")
    if seconds is not None:
        return _timed(name, seconds)
    work = one.facts.work.get(one.bits)
    if work is None:
        told = "the method does not tell what it computes"
        return name, UNKNOWN, told if one.facts.needs_calibration else _ROUNDS
    if not any(work[part] for part in ("passes", "steps", "denoiser_passes", "denoiser_steps")):
        return name, UNKNOWN, _ROUNDS
    if sizes is None:
        return _estimated(name, None, None)
    both = one.facts.options.get("branches") == "both"
    forward, training = work_flops(work, sizes, both=both)
    row = _estimated(name, forward / rate(sizes) + training / SINGLE_FLOPS, sizes)
    search = "; a search over roundings comes on top" if work["searches"] else ""
    steps = f"; a training step as {STEP_PASSES} passes in float32" if training else ""
    return (*row[:2], row[2] + steps + search)


def _timed(name: str, seconds: float | None) -> Row:
    if seconds is None:
        return name, UNKNOWN, "not timed in this store"
    return name, duration(seconds), _JOURNAL


def _estimated(name: str, seconds: float | None, sizes: Sizes | None) -> Row:
    if seconds is None or sizes is None:
        return name, UNKNOWN, "neither timed in this store nor counted"
    assumed = f"{rate(sizes) / 1e12:.0f} TFLOP/s sustained"
    return name, duration(seconds), f"estimate for an {DEVICE}, {assumed}, by assumption"
