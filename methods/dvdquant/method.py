"""DVD-Quant: data-free video diffusion transformer quantization.

arXiv 2505.18663, ICLR 2026. Three parts, none of which sees data:
1. Bounded-init grid refinement (BGR): every weight row gets the step and zero point with the
   smallest squared error, by a search of its bounds and a coordinate descent.
2. Auto-scaling rotated quantization (ARQ): inputs are rotated by a Hadamard matrix and rounded with
   scales that are computed anew at every call.
3. Delta-guided bit switching (delta-GBS): activations have 8 bits at a denoising step where the
   output has changed enough since the last such step, 4 bits otherwise.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.api import (
    IDENTITY_WIDTH,
    BitSpec,
    Deviation,
    QuantContext,
    QuantReport,
    Reproduction,
    Unsupported,
)
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.apply import MODULATION, activation_of, quantize_linears_
from harness.quant.layers.linear import (
    QuantLinear,
    WeightSpec,
    fitting_group,
    quantize_linear,
    stored_grid,
    transformed_weight,
)
from harness.quant.layers.policy import DeltaPolicy, attach_policy_, delta_schedule, relative_change
from harness.quant.layers.switch import SwitchedLinear
from harness.quant.layers.transform import Hadamard
from harness.quant.options import check_choice, check_range
from harness.quant.rounding.groups import group_note
from methods.dvdquant.bgr import bounded_grid_refinement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from harness.models.families.base import InputGroup
    from harness.quant.layers.grid import Affine
    from harness.quant.layers.layers import QuantizedLayer

LOW_BITS, HIGH_BITS = 4, 8  # DVD-Quant: b_low, b_high of delta-GBS
SWITCHING = BitSpec(w=4, a=6)
"""The one nominal width that delta-GBS makes: weights always have 4 bits (DVD-Quant)."""
ARQ = ("group", "literal", "none")
HALVINGS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class DVDQuantOptions:
    """Knobs of DVD-Quant.

    Attributes:
        bgr: Refine weight grids; False takes min-max (the paper's ablation "no BGR").
        weight_group: Input channels that share a weight step, 0 for one step an output channel.
        arq: ``group`` rotates and takes one scale for each token and channel group; ``literal``
            takes one scale for each channel over all tokens, the formula as it is printed, which
            no integer GEMM can apply; ``none`` neither rotates nor groups: one scale a token.
        group: Channels that share an activation scale within a token, for ``arq = "group"``.
        switching: At w4a6, switch between 4 and 8 bits; False keeps 6 bits at every step.
        delta: Threshold of the switching at w4a6; 0 finds the one whose mean width is nearest 6.
        probes: Most trajectories of the quantized model that correct the threshold found.
        modulation: ``w`` quantizes the weights of modulation linears, ``fp`` leaves them out.
    """

    bgr: bool = True
    weight_group: int = 0
    arq: str = "group"
    group: int = 64
    switching: bool = True
    delta: float = 0.0
    probes: int = 3
    modulation: str = "w"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: A value is unknown or out of range.
        """
        check_range("weight_group", self.weight_group, 0)
        check_choice("arq", self.arq, ARQ)
        check_range("group", self.group, 1)
        check_range("delta", self.delta, 0)
        check_range("probes", self.probes, 1)
        check_choice("modulation", self.modulation, MODULATION)


_DEVIATIONS = (
    Deviation(
        kind="reconstructed",
        what="everything: the method is built from its formulas as reviews and notes quote them, "
        "and from the figures of its repository",
        why="no code is released, and the full text was not at hand",
    ),
    Deviation(
        kind="reconstructed",
        what="BGR's bounds are factors 1, 0.99, ... 0.2 on minimum and maximum of a row: both "
        "together, then the lower alone, then the upper alone; at most 50 refinement steps, a row "
        "stops at a relative gain below 1e-4; one grid an output channel, its range holds 0",
        why="no source gives step sizes, number of points, tolerance or weight granularity",
    ),
    Deviation(
        kind="reconstructed",
        what="the refined zero point is the mean over the row, rounded to an integer",
        why="the formula is quoted without a reduction; the mean is its least-squares solution for "
        "one zero point a row",
    ),
    Deviation(
        kind="reconstructed",
        what="ARQ rounds each token in groups of 64 channels by their absolute maximum, symmetric; "
        "'literal' is the printed per-channel scale, simulation only",
        why="a scale inside the sum of the GEMM cannot run on integers; the paper's numbers use a "
        "block-wise form whose block is not given",
    ),
    Deviation(
        kind="deviation",
        what="the rotation has random signs, the same for all inputs of one width, saved with the "
        "artifact; widths without a Hadamard matrix are rotated block-diagonally",
        why="the quoted formula has a plain Hadamard matrix and says nothing of widths that have "
        "none; signs keep a constant channel from gathering in one place",
    ),
    Deviation(
        kind="reconstructed",
        what="modulation linears: BGR without rotation, 16-bit activations",
        why="which layers the paper leaves out is in no source; the storage convention is that of "
        "the other methods here",
    ),
    Deviation(
        kind="reconstructed",
        what="w4a6: delta by bisection on one trajectory of the empty prompt, then corrected on "
        "trajectories of the quantized model until the mean width is within half a step of 6; the "
        "output compared is the conditional branch; the first two steps have no history and take "
        "8 bits",
        why="the paper sweeps delta and names none for its W4A6 row; a data-free method has no "
        "prompts to tune on",
    ),
    Deviation(
        kind="adaptation",
        what="w4a4 and w4a8 are plain layers, delta = infinity and delta = 0, so w4a4 has 4 bits "
        "at the first two steps too; every other width is uniform, without switching",
        why="the label of a row is held for every step where the method does not ask for a mixture",
    ),
)


class DVDQuant:
    """Grid refinement, rotated activations, bits switched by the change of the output."""

    name = "dvdquant"
    version = 1
    Options = DVDQuantOptions
    needs_calibration = False
    unquantized = False
    reproduction = Reproduction(
        title="DVD-Quant: Data-free Video Diffusion Transformers Quantization",
        source="arXiv 2505.18663 (ICLR 2026)",
        code="none released as of 2026-09 (the repository holds a README)",
        rows=(
            "HunyuanVideo W4A6, table 1: aesthetic 62.27, imaging 64.22, scene 33.07 (fp 62.53, "
            "64.78, 42.81)",
            "HunyuanVideo W4A4, table 1: aesthetic 61.96, imaging 61.82, scene 29.94",
        ),
        deviations=_DEVIATIONS,
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Every family and width."""
        return None

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Round every linear; at w4a6 find the switching threshold too."""
        started, options = time.perf_counter(), ctx.options
        switching = options.switching and ctx.bits == SWITCHING
        rounding = _Rounding(ctx, (LOW_BITS, HIGH_BITS) if switching else (ctx.bits.a,))
        with counting(transformer) as evaluations:
            exact = ctx.probe() if switching and options.delta == 0 else []
            report = quantize_linears_(transformer, ctx, rounding.layer, options.modulation)
            report = dataclasses.replace(report, notes=(*rounding.notes(), *_width_notes(ctx)))
            if switching:
                report = delta_guided_bit_switching_(transformer, ctx, exact, report)
        return dataclasses.replace(
            report,
            calibration_forwards=sum(evaluations),
            seconds=time.perf_counter() - started,
        )


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


class _Rounding:
    """BGR and ARQ of one linear after the other.

    Args:
        ctx: Context of the method.
        widths: Activation widths; of several, every linear gets one form each.
    """

    def __init__(self, ctx: QuantContext, widths: tuple[int, ...]) -> None:
        self.ctx = ctx
        self.options: DVDQuantOptions = ctx.options
        self.widths = widths
        self.rotations: dict[int, Hadamard] = {}

    def layer(self, linear: nn.Linear, group: InputGroup) -> QuantizedLayer:
        """Quantized form of a linear, switched where there are several widths."""
        transforms = [] if group.modulation else self.rotation(linear)
        spec = WeightSpec(
            bits=self.ctx.bits.w, symmetric=False,
            group=fitting_group(linear.in_features, self.options.weight_group),
        )  # fmt: skip
        mapped = transformed_weight(linear.weight.detach().float(), transforms)
        grid = self.grid(mapped, spec)

        def form(width: int) -> QuantLinear:
            activation = activation_of(group, self.activation(linear.in_features, width))
            return quantize_linear(
                linear, spec, activation, transforms=transforms, grid=grid, mapped=mapped
            )

        if group.modulation or len(self.widths) == 1:
            return form(self.widths[0])
        return SwitchedLinear([form(width) for width in self.widths])

    def rotation(self, linear: nn.Linear) -> list[nn.Module]:
        """The rotation of all inputs of this width."""
        if self.options.arq == "none":
            return []
        width = linear.in_features
        if width not in self.rotations:
            signs = self.ctx.generator(salt=width)
            self.rotations[width] = Hadamard.random(width, signs).to(self.ctx.device)
        return [self.rotations[width]]

    def grid(self, mapped: Tensor, spec: WeightSpec) -> Affine | None:
        """Refined grid of a weight; None leaves it to min-max, or to width 16."""
        if not self.options.bgr or spec.bits == IDENTITY_WIDTH:
            return None
        return stored_grid(bounded_grid_refinement(mapped, spec.bits, group=spec.group))

    def activation(self, width: int, bits: int) -> ActivationSpec:
        """ARQ's scales, computed at every call."""
        if self.options.arq == "literal":
            return ActivationSpec(bits=bits, axis="channel")
        group = fitting_group(width, self.options.group) if self.options.arq == "group" else 0
        return ActivationSpec(bits=bits, group=group)

    def notes(self) -> list[str]:
        """What the rounding did that the options do not say."""
        options = self.options
        found: list[str] = []
        if options.arq == "literal":
            found.append(
                "ARQ in its literal per-channel form: a simulation that no integer GEMM can run"
            )
        if options.arq == "group":
            found += group_note(options.group, self.rotations)
        return found


def _width_notes(ctx: QuantContext) -> list[str]:
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


def delta_guided_bit_switching_(
    transformer: nn.Module, ctx: QuantContext, exact: Sequence[Tensor], report: QuantReport
) -> QuantReport:
    """Attach the switching to the quantized denoiser, its threshold found and checked, in place.

    Args:
        transformer: Its token linears are ``SwitchedLinear``, low form first.
        ctx: Context of the method.
        exact: Outputs of the full-precision model on the empty prompt; empty where the threshold is
            given.
        report: What was done so far.

    Returns:
        The report with the true average width, the histogram and the series of the check.
    """
    fixed = ctx.options.delta
    delta = fixed or bisect_delta(output_changes(exact), SWITCHING.a)
    tried: list[_Probed] = []
    for _ in range(1 if fixed else ctx.options.probes):
        tried.append(_probe(transformer, ctx, delta))
        half_a_step = (HIGH_BITS - LOW_BITS) / len(tried[-1].schedule) / 2
        if _miss(tried[-1]) <= half_a_step:
            break
        delta = bisect_delta(tried[-1].changes, SWITCHING.a)
    best = min(tried, key=_miss)
    attach_policy_(transformer, DeltaPolicy(best.delta))
    return _switched_report(report, best, trajectories=len(tried) + bool(exact), fixed=bool(fixed))


def _probe(transformer: nn.Module, ctx: QuantContext, delta: float) -> _Probed:
    """Sample the empty prompt with the quantized model under a threshold."""
    policy = DeltaPolicy(delta)
    attach_policy_(transformer, policy)
    outputs = ctx.probe()
    return _Probed(delta, list(policy.trace), output_changes(outputs))


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
