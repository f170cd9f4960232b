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
from typing import TYPE_CHECKING, Literal

from harness.api import (
    IDENTITY_WIDTH,
    Amount,
    Count,
    Method,
    QuantContext,
    QuantReport,
    TargetOptions,
    Whole,
    options,
)
from harness.quant import (
    ActivationSpec,
    Affine,
    Hadamard,
    QuantLinear,
    SwitchedLinear,
    WeightSpec,
    activation_of,
    fitting_group,
    group_note,
    quantize_linear,
    quantize_linears_,
    stored_grid,
    transformed_weight,
)
from methods.dvdquant.bgr import bounded_grid_refinement
from methods.dvdquant.paper import REPRODUCTION
from methods.dvdquant.switching import (
    HIGH_BITS,
    LOW_BITS,
    SWITCHING,
    counting,
    delta_guided_bit_switching_,
    kept_probe,
    width_notes,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.quant import InputGroup, QuantizedLayer


@options
class DVDQuantOptions(TargetOptions):
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
    """

    bgr: bool = True
    weight_group: Whole = 0
    arq: Literal["group", "literal", "none"] = "group"
    group: Count = 64
    switching: bool = True
    delta: Amount = 0.0
    probes: Count = 3


class DVDQuant(Method):
    """Grid refinement, rotated activations, bits switched by the change of the output."""

    name = "dvdquant"
    Options = DVDQuantOptions
    reproduction = REPRODUCTION

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Round every linear; at w4a6 find the switching threshold too."""
        started, chosen = time.perf_counter(), ctx.options
        switching = chosen.switching and ctx.bits == SWITCHING
        rounding = _Rounding(ctx, (LOW_BITS, HIGH_BITS) if switching else (ctx.bits.a,))
        with counting(transformer) as evaluations:
            exact = []
            if switching and chosen.delta == 0:
                exact = kept_probe(ctx, "full precision", evaluations, ctx.probe)
            report = quantize_linears_(transformer, ctx, rounding.layer, chosen.modulation)
            report = dataclasses.replace(report, notes=(*rounding.notes(), *width_notes(ctx)))
            if switching:
                report = delta_guided_bit_switching_(transformer, ctx, exact, report, evaluations)
        return dataclasses.replace(
            report,
            calibration_forwards=sum(evaluations),
            seconds=time.perf_counter() - started,
        )


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
        self._refined = 0

    def layer(self, linear: nn.Linear, group: InputGroup) -> QuantizedLayer:
        """Quantized form of a linear, switched where there are several widths."""
        transforms = [] if group.modulation else self.rotation(linear)
        spec = WeightSpec(
            bits=self.ctx.bits.w, symmetric=False,
            group=fitting_group(linear.in_features, self.options.weight_group),
        )  # fmt: skip
        mapped = transformed_weight(linear.weight.detach().float(), transforms)
        grid = self.refined_grid(mapped, spec)

        def form(width: int) -> QuantLinear:
            scales = self.auto_scaling(linear.in_features, width)
            activation = activation_of(group, scales)
            return quantize_linear(
                linear, spec, activation, transforms=transforms, grid=grid, mapped=mapped
            )

        if group.modulation or len(self.widths) == 1:
            return form(self.widths[0])
        return SwitchedLinear([form(width) for width in self.widths])

    def rotation(self, linear: nn.Linear) -> list[nn.Module]:
        """ARQ's first half: the rotation of all inputs of this width."""
        if self.options.arq == "none":
            return []
        width = linear.in_features
        if width not in self.rotations:
            signs = self.ctx.generator(salt=width)
            self.rotations[width] = Hadamard.random(width, signs).to(self.ctx.device)
        return [self.rotations[width]]

    def refined_grid(self, mapped: Tensor, spec: WeightSpec) -> Affine | None:
        """BGR: refined grid of a weight; None leaves it to min-max, or to width 16."""
        if not self.options.bgr or spec.bits == IDENTITY_WIDTH:
            return None

        def refined() -> tuple[Tensor, Tensor | None]:
            found = stored_grid(bounded_grid_refinement(mapped, spec.bits, group=spec.group))
            return found.scale, found.zero

        self._refined += 1  # linears come in the same order at every attempt
        return Affine(*self.ctx.keep(f"refined grid {self._refined}", refined))

    def auto_scaling(self, width: int, bits: int) -> ActivationSpec:
        """ARQ's second half: scales that are computed anew at every call."""
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
