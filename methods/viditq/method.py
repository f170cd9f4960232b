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
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.api import (
    BitSpec,
    Deviation,
    QuantContext,
    QuantReport,
    Reproduction,
    Unsupported,
)
from harness.models.families.base import InputGroup, linear_at, target_linears
from harness.quant.calibration.capture import BRANCHES
from harness.quant.calibration.salience import shortage
from harness.quant.calibration.samples import uniform_samples
from harness.quant.calibration.statistics import channel_absmax_by_step
from harness.quant.calibration.walk import Walk, block_groups
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.apply import MODULATION, activation_of
from harness.quant.layers.grid import storable
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import QuantLinear, WeightSpec, quantize_linear
from harness.quant.layers.policy import TimestepPolicy, attach_policy_
from harness.quant.layers.switch import SwitchedLinear
from harness.quant.layers.transform import ChannelScale, Hadamard
from harness.quant.options import check_choice, check_range
from methods.viditq import mixed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

ACTIVATION_FLOOR = 1e-3  # ViDiT-Q's release of 2025: smallest channel maximum of an activation
MIXED = ("none", "metric-decoupled")
BALANCED = ("all", "attention")


@dataclass(frozen=True, kw_only=True, slots=True)
class ViDiTQOptions:
    """Knobs of ViDiT-Q.

    Attributes:
        samples: (prompt, timestep) samples of the channel maxima.
        timesteps: Equally spaced timesteps they come from.
        alpha: Exponent of the activation in s = max|X|^alpha / max|W|^(1 - alpha), x / s. The
            release of 2025 writes the inverse scale, its exponent is 1 - alpha.
        scale: Channel scale, the static part of the balancing.
        rotate: Hadamard rotation, the dynamic part.
        balanced: ``all`` token inputs, or those of ``attention`` only.
        branches: Guidance branches of a sample: ``both``, ``alternate`` or ``cond``.
        modulation: ``w`` quantizes the weights of modulation linears, ``fp`` leaves them out.
        mixed: ``none``, or ``metric-decoupled`` mixed precision.
        average_bits: Budget of that: mean weight bits over the linears that see tokens and over the
            steps.
        sensitivity_samples: (prompt, timestep) samples for each quarter of the trajectory that a
            layer's sensitivity is measured on.
        text_metric: Ranks attention to the text: a name of ``mixed.METRICS``, or
            ``module:function`` of one's own.
        quality_metric: Ranks self-attention and feed-forward.
        motion_metric: Ranks temporal attention.
    """

    samples: int = 40
    timesteps: int = 10  # ViDiT-Q's release of 2024: 10 of the sampling steps
    alpha: float = 0.11  # ViDiT-Q's release of 2024, Open-Sora W4A8
    scale: bool = True
    rotate: bool = True
    balanced: str = "all"
    branches: str = "alternate"
    modulation: str = "w"
    mixed: str = "none"
    average_bits: float = 6.2  # what the released Open-Sora W4A8-MP configuration averages to
    sensitivity_samples: int = 1
    text_metric: str = "guidance"
    quality_metric: str = "output"
    motion_metric: str = "motion"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: A value is unknown or out of range.
        """
        for option in ("samples", "timesteps", "sensitivity_samples"):
            check_range(option, getattr(self, option), 1)
        check_range("alpha", self.alpha, 0, 1)
        check_choice("balanced", self.balanced, BALANCED)
        check_choice("branches", self.branches, BRANCHES)
        check_choice("modulation", self.modulation, MODULATION)
        check_choice("mixed", self.mixed, MIXED)
        check_range("average_bits", self.average_bits, 2, mixed.RAISED)
        for option in ("text_metric", "quality_metric", "motion_metric"):
            mixed.metric_named(option, getattr(self, option))


_DEVIATIONS = (
    Deviation(
        kind="deviation",
        what="every weight is rounded once, after scale and rotation; the release of 2025 rounds "
        "it after the scale and again after the rotation",
        why="a defect of the release: rounding twice adds the error of a grid that is never used",
    ),
    Deviation(
        kind="deviation",
        what="the signs of the Hadamard rotation are drawn from the calibration seed and saved "
        "with the artifact; the release of 2025 draws new ones when it loads",
        why="a defect of the release: weights and activations must be rotated alike",
    ),
    Deviation(
        kind="deviation",
        what="a step that is too small is raised by itself; the release of 2024 then overwrites "
        "every step of the tensor with 1e-6 (fill_)",
        why="a defect of the release",
    ),
    Deviation(
        kind="deviation",
        what="each batch element has its own token ranges; the release of 2024 shares them over "
        "the batch and therefore runs the guidance branches apart (cfg_split)",
        why="the branches are then independent, as in a deployed model",
    ),
    Deviation(
        kind="reconstructed",
        what="alpha = 0.11 for every width and linear, written as SmoothQuant's exponent of the "
        "activation; 0.11-0.12 in the release of 2024 (W4A8), 0.88 as 1 - alpha in that of 2025 "
        "(its DiT example)",
        why="the convention flips between the releases and no other value was published",
    ),
    Deviation(
        kind="reconstructed",
        what="balancing at every width, of every linear that sees tokens, 'attention' as option; "
        "the releases choose layers by regular expressions that differ from example to example, "
        "and that of 2024 ran W8A8 without balancing",
        why="one rule for all families; the feed-forward has the worst outliers",
    ),
    Deviation(
        kind="deviation",
        what="one scale for the whole trajectory; the first version of the paper had one for each "
        "half of the timesteps, with the same alpha and an EMA statistic",
        why="the published version takes the maximum over timesteps",
    ),
    Deviation(
        kind="adaptation",
        what="40 samples: 10 equally spaced timesteps x 4 prompts, one guidance branch each, in "
        "turn within a timestep ('both' is an option)",
        why="the same calibration budget as every method; the releases take 8 or 10 prompts",
    ),
    Deviation(
        kind="adaptation",
        what="patch, time and final layers stay in high precision, modulation linears have "
        "weights of the nominal width and 16-bit activations",
        why="the same target set for every method; the release keeps modulation in high precision",
    ),
    Deviation(
        kind="deviation",
        what="mixed precision (option) ranks layers by proxies on the denoiser's output at "
        "calibration samples: change of the guidance direction for CLIPScore, relative squared "
        "error for DOVER, error of the frame differences for the flow score",
        why="the metrics need their own weights and decoded clips; a metric of one's own can be "
        "given by module:function",
    ),
    Deviation(
        kind="reconstructed",
        what="mixed precision: group budgets are proportional to the summed relative squared "
        "output error of the group's layers; the total is 6.2 bits, the average of the released "
        "Open-Sora plan (feed-forward at 8, the first quarter at 8, attention at 4); a layer's "
        "sensitivity is that of weights and activations at the nominal widths, on one sample a "
        "quarter",
        why="the rule and the budget are not in the texts and code at hand",
    ),
    Deviation(
        kind="adaptation",
        what="mixed precision: joint attention over text and video is ranked as attention to the "
        "text; a layer is one attention or feed-forward of a block",
        why="the paper treats models with separate cross-attention",
    ),
    Deviation(
        kind="deviation",
        what="mixed precision changes weights only, activations keep the nominal width in every "
        "step",
        why="W4A8-MP has 8-bit activations everywhere",
    ),
)


class ViDiTQ:
    """Dynamic asymmetric quantization with static-dynamic channel balancing."""

    name = "viditq"
    version = 1
    Options = ViDiTQOptions
    needs_calibration = True
    unquantized = False
    reproduction = Reproduction(
        title="ViDiT-Q: Efficient and Accurate Quantization of Diffusion Transformers for Image "
        "and Video Generation",
        source="arXiv 2406.02540 (ICLR 2025)",
        code="released by the authors in 2024 and 2025, two different code bases",
        rows=(
            "Open-Sora W4A6 as re-run by Q-VDiT, VBench: imaging 55.63, aesthetic 53.68 "
            "(fp 63.68, 57.12)",
            "Open-Sora W8A8 as reprinted by Q-VDiT, table 3: CLIPSIM .1950, VQA-A 60.70",
            "Open-Sora W4A8 as reprinted by Q-VDiT, table 3: CLIPSIM .1809, VQA-A 60.62",
        ),
        deviations=_DEVIATIONS,
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Every family and width."""
        return None

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
        self.groups = {
            name: group
            for name, group in target_linears(ctx.family, transformer).items()
            if self.options.modulation == "w" or not group.modulation
        }
        self.transforms: dict[str, list[nn.Module]] = {}

    def quantize_(self) -> QuantReport:
        """Gather maxima block by block, then replace every linear."""
        options, pool = self.options, self.ctx.calibration
        samples = uniform_samples(pool, options.samples, options.timesteps)
        walk = Walk(
            self.transformer, self.ctx, samples, branches=options.branches, verb="balancing"
        )
        for step in walk:
            peaks = channel_absmax_by_step(step.block, self.ctx.family, step.inputs)
            for group in block_groups(self.ctx.family, step.block, options.modulation):
                chosen = self.balancing(step.block, group, peaks[group.name].amax(0))
                self.transforms |= {f"{step.name}.{linear}": chosen for linear in group.linears}
        notes = [*shortage(samples, options.samples)]
        if options.mixed == "none" or self.ctx.bits.w >= options.average_bits:
            if options.mixed != "none":
                notes.append(
                    f"mixed precision raised nothing: weights of {self.ctx.bits.w} bits exceed "
                    f"the budget of {options.average_bits:g}"
                )
            self.replace_({})
            return walk.report(passes=1, notes=notes)
        return self.mixed_precision_(walk, notes)

    def balancing(self, block: nn.Module, group: InputGroup, peak: Tensor) -> list[nn.Module]:
        """Transforms of a shared input: channel scale first, rotation after it."""
        left_out = self.options.balanced == "attention" and mixed.is_feed_forward(group)
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

    def quantized(self, name: str, bits: int | None = None) -> QuantLinear:
        """Round a linear once, in the balanced basis."""
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
            forms = {bits: self.quantized(name, bits) for bits in sorted(set(own))}
            layer: nn.Module = forms[own[0]]
            if len(forms) > 1:
                layer = SwitchedLinear([forms[bits] for bits in own])
            replace_module_(self.transformer, name, layer)

    def mixed_precision_(self, walk: Walk, notes: Sequence[str]) -> QuantReport:
        """Measure every layer's sensitivity, allocate the budget, replace."""
        options, timesteps = self.options, self.ctx.timesteps()
        bounds = mixed.quarter_bounds(timesteps)
        layers = mixed.layers_of(self.ctx.family, self.transformer)
        samples = mixed.probe_samples(
            len(self.ctx.calibration.prompts), len(timesteps), options.sensitivity_samples
        )
        metrics = {
            group: mixed.metric_named(f"{group}_metric", getattr(options, f"{group}_metric"))
            for group in ("text", "quality", "motion")
        }
        measured = mixed.measure_sensitivity(
            self.transformer, self.ctx, layers, metrics, samples, self.quantized
        )
        plan = mixed.plan(layers, measured, self.ctx.bits.w, options.average_bits, len(timesteps))
        self.replace_(
            {name: plan.widths[i] for i, layer in enumerate(layers) for name in layer.linears}
        )
        if any(isinstance(module, SwitchedLinear) for module in self.transformer.modules()):
            attach_policy_(self.transformer, TimestepPolicy(bounds))
        return self.mixed_report(walk.report(passes=1), notes, layers, measured, plan)

    def mixed_report(
        self,
        report: QuantReport,
        notes: Sequence[str],
        layers: Sequence[mixed.Layer],
        measured: mixed.Measured,
        plan: mixed.Plan,
    ) -> QuantReport:
        """True average bits, what was raised, what it cost."""
        pool, options = self.ctx.calibration, self.options
        steps = [mixed.steps_in(quarter, pool.steps) for quarter in range(mixed.QUARTERS)]
        mean = {
            name: sum(b * n for b, n in zip(plan.widths[i], steps, strict=True)) / pool.steps
            for i, layer in enumerate(layers)
            for name in layer.linears
        }
        used = sorted({layer.group for layer in layers})
        metrics = ", ".join(f"{g} by {getattr(options, f'{g}_metric')}" for g in used)
        return dataclasses.replace(
            report,
            layers=tuple(
                dataclasses.replace(entry, w_bits=mean.get(entry.name, entry.w_bits))
                for entry in report.layers
            ),
            calibration_forwards=report.calibration_forwards + measured.evaluations * pool.branches,
            notes=(
                *notes,
                f"weights average {plan.average:.2f} bits over token linears and steps (budget "
                f"{options.average_bits:g}): {plan.summary(layers)}",
                f"layers ranked on calibration samples: {metrics}; {', '.join(mixed.METRICS)} are "
                "proxies on the denoiser's output for the paper's DOVER, CLIPScore and flow score",
                f"the sensitivity took {measured.evaluations} denoiser evaluations of "
                f"{pool.branches} branches: {len(layers)} layers x {mixed.QUARTERS} quarters x "
                f"{options.sensitivity_samples} samples, and full precision",
            ),
            curves=report.curves
            | {
                f"{what}_quarter_{quarter + 1}": [row[quarter] for row in rows]
                for what, rows in (("output_error", measured.error), ("damage", measured.damage))
                for quarter in range(mixed.QUARTERS)
            },
            mixed=f"metric-decoupled mixed precision: weights {self.ctx.bits.w} or "
            f"{mixed.RAISED} bits by layer and quarter of the trajectory, "
            f"{plan.average:.2f} on average",
        )
