"""Delta-guided bit switching (delta-GBS) of DVD-Quant (arXiv 2505.18663): finding its threshold.

Activations have 8 bits at a denoising step where the output has changed by delta in all since the
last such step, 4 bits otherwise. Delta is bisected on the output changes of one trajectory of the
empty prompt and corrected on trajectories of the quantized model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.api import IDENTITY_WIDTH, BitSpec
from harness.quant import DeltaPolicy, attach_policy_, delta_schedule, relative_change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from harness.api import QuantContext, QuantReport

LOW_BITS, HIGH_BITS = 4, 8  # DVD-Quant: b_low, b_high of delta-GBS
SWITCHING = BitSpec(w=4, a=6)
"""The one nominal width that delta-GBS makes: weights always have 4 bits (DVD-Quant)."""
HALVINGS = 60


@contextmanager
def counting(transformer: nn.Module) -> Iterator[list[int]]:
    """Collect the batch of every denoiser call: its sum is the evaluations, branches counted."""
    batches: list[int] = []

    def count(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del args
        batches.append((output[0] if isinstance(output, tuple) else output.sample).shape[0])

    handle = transformer.register_forward_hook(count)
    try:
        yield batches
    finally:
        handle.remove()


def output_changes(outputs: Sequence[Tensor]) -> list[float]:
    """L1(F, t) of every step against the one before; 0 for the first, which has none.

    Args:
        outputs: Denoiser outputs of a trajectory, in order.
    """
    pairs = zip(outputs[1:], outputs[:-1], strict=True)
    return [0.0, *(relative_change(later, earlier) for later, earlier in pairs)]


def mean_width(schedule: Sequence[int]) -> float:
    """Activation bits averaged over the steps of a schedule, 1 for high and 0 for low."""
    return sum(HIGH_BITS if high else LOW_BITS for high in schedule) / len(schedule)


def bisect_delta(changes: Sequence[float], target: float) -> float:
    """Threshold whose mean activation width comes nearest to a target.

    The mean falls with delta in jumps; the answer is the middle of the plateau that is nearest,
    the lower one of two that are equally near.

    Args:
        changes: Relative change of the output at every step, the first not used.
        target: Mean width in bits.
    """

    def mean(delta: float) -> float:
        return mean_width(delta_schedule(changes, delta))

    top = 2 * sum(changes[1:]) or 1.0
    above, below = _edge(lambda delta: mean(delta) <= target, top)
    gap_above, gap_below = abs(mean(above) - target), abs(mean(below) - target)
    nearest = mean(below if gap_below <= gap_above else above)
    _, start = _edge(lambda delta: mean(delta) <= nearest, top)
    end, _ = _edge(lambda delta: mean(delta) < nearest, top)
    return (start + end) / 2


def _edge(passed: Callable[[float], bool], top: float) -> tuple[float, float]:
    """Halve ``[0, top]`` around the point from which ``passed`` holds.

    Returns:
        The points before and behind it; both 0 where it holds everywhere, both ``top`` where
        nowhere.
    """
    if passed(0.0):
        return 0.0, 0.0
    if not passed(top):
        return top, top
    low, high = 0.0, top
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if passed(middle) else (middle, high)
    return low, high


class _Probed(NamedTuple):
    """A threshold and what the quantized model did with it."""

    delta: float
    schedule: list[int]
    changes: list[float]


def kept_probe(
    ctx: QuantContext, name: str, evaluations: list[int], sample: Callable[[], Any]
) -> Any:
    """Sample a trajectory, or take what an attempt that was ended has kept of it.

    Args:
        ctx: Context of the method.
        name: What the trajectory is called.
        evaluations: Collects the batch of every denoiser call, those of a kept one too.
        sample: Samples it; what it returns is kept.
    """

    def counted() -> tuple[Any, list[int]]:
        before = len(evaluations)
        return sample(), evaluations[before:]

    before = len(evaluations)
    found, spent = ctx.keep(f"trajectory {name}", counted)
    evaluations[before:] = spent
    return found


def delta_guided_bit_switching_(
    transformer: nn.Module,
    ctx: QuantContext,
    exact: Sequence[Tensor],
    report: QuantReport,
    evaluations: list[int],
) -> QuantReport:
    """Attach the switching to the quantized denoiser, its threshold found and checked, in place.

    Args:
        transformer: Its token linears are ``SwitchedLinear``, low form first.
        ctx: Context of the method.
        exact: Outputs of the full-precision model on the empty prompt; empty where the threshold is
            given.
        report: What was done so far.
        evaluations: Collects the batch of every denoiser call.

    Returns:
        The report with the true average width, the histogram and the series of the check.
    """
    fixed = ctx.options.delta
    delta = fixed or bisect_delta(output_changes(exact), SWITCHING.a)
    tried: list[_Probed] = []
    for _ in range(1 if fixed else ctx.options.probes):
        name = f"of the quantized model {len(tried) + 1}"
        probe = functools.partial(_probe, transformer, ctx, delta)
        schedule, changes = kept_probe(ctx, name, evaluations, probe)
        tried.append(_Probed(delta, schedule, changes))
        half_a_step = (HIGH_BITS - LOW_BITS) / len(tried[-1].schedule) / 2
        if _miss(tried[-1]) <= half_a_step:
            break
        delta = bisect_delta(tried[-1].changes, SWITCHING.a)
    best = min(tried, key=_miss)
    attach_policy_(transformer, DeltaPolicy(best.delta))
    return _switched_report(report, best, trajectories=len(tried) + bool(exact), fixed=bool(fixed))


def _probe(
    transformer: nn.Module, ctx: QuantContext, delta: float
) -> tuple[list[int], list[float]]:
    """Sample the empty prompt with the quantized model under a threshold.

    Returns:
        The schedule and the change of the output at every step.
    """
    policy = DeltaPolicy(delta)
    attach_policy_(transformer, policy)
    outputs = ctx.probe()
    return list(policy.trace), output_changes(outputs)


def _miss(probed: _Probed) -> float:
    return abs(mean_width(probed.schedule) - SWITCHING.a)


def _switched_report(
    report: QuantReport, best: _Probed, *, trajectories: int, fixed: bool
) -> QuantReport:
    widths = [HIGH_BITS if high else LOW_BITS for high in best.schedule]
    count, mean = Counter(widths), mean_width(best.schedule)
    where = (
        f"activations have {LOW_BITS} bits at {count[LOW_BITS]} and {HIGH_BITS} bits at "
        f"{count[HIGH_BITS]} of {len(widths)} steps"
    )
    found = "given" if fixed else f"found on {trajectories} trajectories of the empty prompt"
    layers = tuple(
        layer if layer.a_bits == IDENTITY_WIDTH else dataclasses.replace(layer, a_bits=mean)
        for layer in report.layers
    )
    return dataclasses.replace(
        report,
        layers=layers,
        notes=(
            *report.notes,
            f"delta-GBS: delta = {best.delta:.4g}, {found}; {where}, {mean:.2f} on average, on the "
            "empty prompt; a prompt's own schedule differs",
        ),
        curves={
            **report.curves,
            "activation_bits_by_step": [float(width) for width in widths],
            "output_change_by_step": best.changes,
        },
        mixed=f"delta-GBS: {where}",
    )


def width_notes(ctx: QuantContext) -> list[str]:
    """Where the row stands towards delta-GBS."""
    bits, options = ctx.bits, ctx.options
    if bits == SWITCHING:
        if options.switching:
            return []
        return ["delta-GBS is switched off: 6 bits at every step"]
    limits = {BitSpec(w=4, a=LOW_BITS): "infinity", BitSpec(w=4, a=HIGH_BITS): "0"}
    why = f"delta-GBS with delta = {limits[bits]}" if bits in limits else "no delta-GBS"
    ignored = f"; the option delta = {options.delta:g} is not used" if options.delta else ""
    return [f"{why}: {bits.a} bits at every step{ignored}"]
