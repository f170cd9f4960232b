"""ViDiT-Q: quantization of video diffusion transformers.

ViDiT-Q: Efficient and Accurate Quantization of Diffusion Transformers for Image and Video
Generation, arXiv 2406.02540, ICLR 2025. In four steps:
1. Dynamic quantization: every token of every batch element finds its own asymmetric range online;
   weights are asymmetric per output channel.
2. Static-dynamic channel balancing: a channel scale takes the static part of the imbalance between
   channels, a Hadamard rotation with random signs after it takes what changes with the timestep.
3. The activation statistic of the scale is the channel maximum over all timesteps.
4. Optionally, metric-decoupled mixed precision (``mixed``) raises weights to 8 bits.
Nothing is trained.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from harness.api import (
    Count,
    Method,
    QuantContext,
    QuantReport,
    Share,
    SpacedOptions,
    Work,
    options,
)
from harness.quant import (
    ActivationSpec,
    ChannelScale,
    Hadamard,
    QuantLinear,
    SwitchedLinear,
    Walk,
    WeightSpec,
    activation_of,
    channel_absmax_by_step,
    linear_at,
    quantize_linear,
    replace_module_,
    storable,
    target_groups,
    target_linears,
)
from methods.viditq.allocation import RAISED
from methods.viditq.metrics import MetricName
from methods.viditq.mixed import mixed_precision_
from methods.viditq.paper import REPRODUCTION
from methods.viditq.sensitivity import is_feed_forward

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api import BitSpec
    from harness.quant import InputGroup

ACTIVATION_FLOOR = 1e-3  # ViDiT-Q's release of 2025: smallest channel maximum of an activation


@options
class ViDiTQOptions(SpacedOptions):
    """Knobs of ViDiT-Q.

    Attributes:
        alpha: Exponent of the activation in s = max|X|^alpha / max|W|^(1 - alpha), x / s. The
            release of 2025 writes the inverse scale, its exponent is 1 - alpha.
        scale: Channel scale, the static part of the balancing.
        rotate: Hadamard rotation, the dynamic part.
        balanced: ``all`` token inputs, or those of ``attention`` only: every input but those that
            the feed-forward alone reads.
        mixed: ``none``, or ``metric-decoupled`` mixed precision.
        average_bits: Budget of that: mean weight bits over the linears that see tokens and over the
            steps.
        sensitivity_samples: (prompt, timestep) samples for each quarter of the trajectory that a
            layer's sensitivity is measured on.
        text_metric: Ranks attention to the text: a name of ``metrics.METRICS``, or
            ``module:function`` of one's own.
        quality_metric: Ranks self-attention and feed-forward.
        motion_metric: Ranks temporal attention.
    """

    alpha: Share = 0.11  # ViDiT-Q's release of 2024, Open-Sora W4A8
    scale: bool = True
    rotate: bool = True
    balanced: Literal["all", "attention"] = "all"
    mixed: Literal["none", "metric-decoupled"] = "none"
    # what the released Open-Sora W4A8-MP configuration averages to
    average_bits: Annotated[float, Field(ge=2, le=RAISED)] = 6.2
    sensitivity_samples: Count = 1
    text_metric: MetricName = "guidance"
    quality_metric: MetricName = "output"
    motion_metric: MetricName = "motion"


class ViDiTQ(Method):
    """Dynamic asymmetric quantization with static-dynamic channel balancing."""

    name = "viditq"
    Options = ViDiTQOptions
    needs_calibration = True
    reproduction = REPRODUCTION

    def work(self, options: ViDiTQOptions, bits: BitSpec) -> Work | None:
        """Outputs and maxima; what mixed precision measures depends on the model's layers."""
        if options.mixed != "none" and bits.w < options.average_bits:
            return None
        return Work(samples=options.samples, passes=2)

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Balance every input, then round."""
        return _Run(transformer, ctx).quantize_()


def static_scale(activation: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """Static part of the balancing: s = max|X|^alpha / max|W|^(1 - alpha), for x / s and W s.

    Args:
        activation: Maximum of |X| over tokens and timesteps, ``[in_features]``.
        weight: Maximum of |W| over output channels, ``[in_features]``.
        alpha: Exponent of the activation.

    Returns:
        ``[in_features]``; 1 where no weight reads the channel.
    """
    scale = activation.clamp_min(ACTIVATION_FLOOR) ** alpha / weight ** (1 - alpha)
    return torch.where(weight > 0, scale, torch.ones_like(scale))


class _Run:
    """One quantization."""

    def __init__(self, transformer: nn.Module, ctx: QuantContext) -> None:
        self.transformer, self.ctx = transformer, ctx
        self.options: ViDiTQOptions = ctx.options
        self.generator = ctx.generator(salt=1)
        self.groups = target_linears(ctx.family, transformer, self.options.modulation)
        self.transforms: dict[str, list[nn.Module]] = {}

    def quantize_(self) -> QuantReport:
        """Gather maxima block by block, then replace every linear."""
        chosen = self.options
        peaks: dict[str, Tensor] = {}
        walk = Walk(self.transformer, self.ctx, verb="balancing", state={"peaks": peaks})
        for step in walk:
            by_step = channel_absmax_by_step(step.block, self.ctx.family, step.inputs)
            peaks |= {f"{step.name}.{g.name}": by_step[g.name].amax(0) for g in step.groups}
        for name, block in self.ctx.family.blocks(self.transformer):
            for group in target_groups(self.ctx.family, block, chosen.modulation):
                found = self.channel_balancing(block, group, peaks[f"{name}.{group.name}"])
                self.transforms |= {f"{name}.{linear}": found for linear in group.linears}
        if chosen.mixed == "metric-decoupled" and self.ctx.bits.w < chosen.average_bits:
            return mixed_precision_(
                self.transformer, self.ctx, self.dynamic_quantization, self.replace_,
                lambda: walk.report(passes=1),
            )  # fmt: skip
        self.replace_({})
        return walk.report(passes=1, notes=self.notes())

    def channel_balancing(
        self, block: nn.Module, group: InputGroup, peak: Tensor
    ) -> list[nn.Module]:
        """Transforms of a shared input: channel scale first, rotation after it.

        Args:
            block: Full precision.
            group: The input.
            peak: Its channel maximum over all timesteps, ``[in_features]``.
        """
        left_out = self.options.balanced == "attention" and is_feed_forward(group)
        if group.modulation or left_out:
            return []
        found: list[nn.Module] = []
        if self.options.scale:
            weight = torch.stack(
                [linear_at(block, n).weight.detach().abs().amax(0).float() for n in group.linears]
            ).amax(0)
            found.append(ChannelScale(storable(static_scale(peak, weight, self.options.alpha))))
        if self.options.rotate:
            rotation = Hadamard.random(peak.numel(), self.generator)
            found.append(rotation.to(self.ctx.device))
        return found

    def dynamic_quantization(self, name: str, bits: int | None = None) -> QuantLinear:
        """Round a linear once, in the balanced basis; its tokens find their ranges online."""
        activation = ActivationSpec(bits=self.ctx.bits.a, symmetric=False)
        return quantize_linear(
            linear_at(self.transformer, name),
            WeightSpec(bits=self.ctx.bits.w if bits is None else bits, symmetric=False),
            activation_of(self.groups[name], activation),
            transforms=copy.deepcopy(self.transforms[name]),  # tensors in a file must not overlap
        )

    def replace_(self, widths: dict[str, list[int]]) -> None:
        """Replace every linear; ``widths`` gives weight bits by quarter where they are mixed."""
        for name in self.groups:
            own = widths.get(name, [self.ctx.bits.w])
            forms = {bits: self.dynamic_quantization(name, bits) for bits in sorted(set(own))}
            layer: nn.Module = forms[own[0]]
            if len(forms) > 1:
                layer = SwitchedLinear([forms[bits] for bits in own])
            replace_module_(self.transformer, name, layer)

    def notes(self) -> list[str]:
        """What mixed precision was asked for and had nothing to raise."""
        if self.options.mixed == "none":
            return []
        return [
            f"mixed precision raised nothing: weights of {self.ctx.bits.w} bits exceed the budget "
            f"of {self.options.average_bits:g}"
        ]
