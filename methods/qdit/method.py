"""Q-DiT: group quantization along the input channels, with dynamic activations.

Q-DiT: Accurate Post-Training Quantization for Diffusion Transformers, arXiv 2406.17343, CVPR 2025:
1. Weights and activations are asymmetric in groups of input channels; a layer's weight and its
   activation have the same group size.
2. The activation range is found while sampling, for each sample, token and group.
3. Weights are rounded by GPTQ.
4. As an option, an evolutionary search gives every layer its own group size under a BitOps budget.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.api import (
    IDENTITY_WIDTH,
    BitSpec,
    Deviation,
    QuantContext,
    QuantReport,
    Reproduction,
    Unsupported,
)
from harness.errors import UsageError
from harness.models.families.base import linear_at
from harness.quant.calibration.capture import BRANCHES
from harness.quant.calibration.salience import shortage
from harness.quant.calibration.samples import uniform_samples
from harness.quant.calibration.walk import Walk, block_groups
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.apply import MODULATION, activation_of, targets
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import WeightSpec, fitting_group
from harness.quant.options import check_choice, check_range
from harness.quant.rounding.gptq import linear_hessians, output_error
from harness.quant.rounding.gptq_linear import gptq_linear
from harness.quant.rounding.groups import group_note
from methods.qdit.evolution import Evolution
from methods.qdit.group_search import GroupSearch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class QDiTOptions:
    """Knobs of Q-DiT.

    Attributes:
        group: Group size of weights and activations, where it is not searched.
        search: Search a group size for every input.
        sizes: Group sizes of the search.
        bitops: Budget of the search: BitOps relative to ``group`` everywhere.
        population: Configurations of a round.
        parents: Best configurations that have children.
        mutations: Children by mutation in a round.
        crossovers: Children by crossover in a round.
        probability: Chance of each group size to mutate.
        rounds: Rounds after the first population.
        search_samples: (prompt, timestep) samples on which configurations are compared.
        inputs: Block inputs of the Hessians: ``quantized`` as the quantized blocks before deliver
            them, or ``fp`` from the full-precision model.
        samples: (prompt, timestep) samples of the Hessians.
        timesteps: Equally spaced timesteps of the samples.
        branches: Guidance branches of a sample: ``both``, ``alternate`` or ``cond``.
        modulation: ``w`` quantizes the weights of modulation linears too, ``fp`` leaves them out.
    """

    group: int = 128  # Q-DiT's default
    search: bool = False
    sizes: tuple[int, ...] = (32, 64, 128, 192, 288)  # Q-DiT's search space
    bitops: float = 1.1
    population: int = 50  # Q-DiT's released search script, as the five below
    parents: int = 10
    mutations: int = 25
    crossovers: int = 15
    probability: float = 0.1
    rounds: int = 10
    search_samples: int = 8
    inputs: str = "quantized"
    samples: int = 40
    timesteps: int = 10
    branches: str = "alternate"
    modulation: str = "w"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: A value is unknown or out of range.
        """
        for option in ("group", "population", "parents", "search_samples", "samples", "timesteps"):
            check_range(option, getattr(self, option), 1)
        for option in ("mutations", "crossovers", "rounds"):
            check_range(option, getattr(self, option), 0)
        if not self.sizes:
            raise UsageError("option 'sizes' is empty", "give group sizes: [32, 64, 128]")
        for size in self.sizes:
            check_range("sizes", size, 1)
        check_range("bitops", self.bitops, 1)
        check_range("probability", self.probability, 0, 1)
        check_choice("inputs", self.inputs, ("quantized", "fp"))
        check_choice("branches", self.branches, BRANCHES)
        check_choice("modulation", self.modulation, MODULATION)


_DEVIATIONS = (
    Deviation(
        kind="deviation",
        what="one group size for all layers by default; the evolutionary search is `search = true`",
        why="in the paper's ablation (DiT-XL/2, W4A8, FID) groups of 128 and dynamic activations "
        "give 225.5 -> 6.64 and the search 6.64 -> 6.40, at hundreds of model evaluations",
    ),
    Deviation(
        kind="deviation",
        what="the search minimises the squared error of the denoiser's output on 8 calibration "
        "samples; the paper takes the FID, or the FVD, of generated samples",
        why="a clip set for every configuration is not affordable, and no reference clips come "
        "with a model",
    ),
    Deviation(
        kind="reconstructed",
        what="BitOps are multiply-accumulates x w bits x a bits, and 16 x 16 for the rescaling of "
        "each group's partial sum; the budget is 1.1 times those of groups of 128",
        why="neither the cost of a group nor the budget is known to us; the released script bounds "
        "the mean group size from below instead",
    ),
    Deviation(
        kind="adaptation",
        what="linears that read one tensor share a group size, modulation linears keep the default "
        "one; weights are rounded to nearest during the search and by GPTQ behind it",
        why="the activation is then rounded once for all its readers; as in the released script",
    ),
    Deviation(
        kind="adaptation",
        what="Hessians come from unrounded inputs at 40 (prompt, timestep) samples, one guidance "
        "branch each, text and video tokens alike",
        why="the same calibration budget as every method",
    ),
    Deviation(
        kind="adaptation",
        what="modulation linears keep 16-bit activations; linears outside the blocks and attention "
        "products stay in high precision",
        why="the same target set for every method",
    ),
)


class QDiT:
    """Groups along the input channels, GPTQ, dynamic activations."""

    name = "qdit"
    version = 1
    Options = QDiTOptions
    needs_calibration = True
    unquantized = False
    reproduction = Reproduction(
        title="Q-DiT: Accurate Post-Training Quantization for Diffusion Transformers",
        source="arXiv 2406.17343 (CVPR 2025)",
        code="https://github.com/Juanerx/Q-DiT",
        rows=(
            "DiT-XL/2 ImageNet 256x256, 100 steps, guidance 1.5, W4A8: FID 6.40, sFID 18.60, IS "
            "211.72 (full precision 5.31, 17.61, 245.85); images, so no row here compares",
        ),
        deviations=_DEVIATIONS,
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Every family and width."""
        return None

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Choose group sizes, then round block by block."""
        options: QDiTOptions = ctx.options
        widths = {
            name: linear_at(transformer, name).in_features
            for name in targets(ctx.family, transformer, options.modulation)
        }
        sizes = {name: fitting_group(width, options.group) for name, width in widths.items()}
        notes = group_note(options.group, widths.values())
        if not options.search or ctx.bits.is_identity:
            return round_(transformer, ctx, sizes, notes, {})
        pool = ctx.calibration
        compared = uniform_samples(pool, options.search_samples, options.timesteps)
        first = dataclasses.replace(ctx, progress=lambda f, text: ctx.progress(0.9 * f, text))
        search = GroupSearch(transformer, first, compared, options.sizes, options.group)
        started = time.perf_counter()
        found = search.search(_evolution(options), options.bitops)
        seconds = time.perf_counter() - started
        for names, size in zip(search.readers, found.best, strict=True):
            sizes |= dict.fromkeys(names, size)
        spent = (found.evaluated + 1) * len(compared) * pool.branches
        ratio = search.bitops(found.best) / search.bitops(search.start)
        notes = (
            *notes,
            f"group sizes chosen from {found.evaluated} configurations; {ratio:.3f} times the "
            f"BitOps of groups of {options.group}",
        )
        curves = {"search_loss": list(found.curve), "group_size": [float(g) for g in found.best]}
        rest = dataclasses.replace(ctx, progress=lambda f, text: ctx.progress(0.9 + 0.1 * f, text))
        report = round_(transformer, rest, sizes, notes, curves)
        return dataclasses.replace(
            report,
            calibration_forwards=report.calibration_forwards + spent,
            seconds=report.seconds + seconds,
        )


def _evolution(options: QDiTOptions) -> Evolution:
    return Evolution(
        population=options.population,
        parents=options.parents,
        mutations=options.mutations,
        crossovers=options.crossovers,
        probability=options.probability,
        rounds=options.rounds,
    )


def round_(
    transformer: nn.Module,
    ctx: QuantContext,
    sizes: Mapping[str, int],
    notes: Sequence[str],
    curves: Mapping[str, list[float]],
) -> QuantReport:
    """Round every target linear by GPTQ in its groups, block by block, in place.

    Args:
        transformer: The denoiser.
        ctx: Context of the method.
        sizes: Group size by qualified name of the linear.
        notes: For the report.
        curves: For the report.
    """
    options: QDiTOptions = ctx.options
    samples = uniform_samples(ctx.calibration, options.samples, options.timesteps)
    walk = Walk(
        transformer, ctx, samples,
        branches=options.branches, inputs=options.inputs, verb="rounding",
    )  # fmt: skip
    errors: dict[str, float] = {}
    for step in walk:
        groups = block_groups(ctx.family, step.block, options.modulation)
        hessians = linear_hessians(step.block, ctx.family, groups, {}, step.given)
        for group in groups:
            for name in group.linears:
                linear, full = linear_at(step.block, name), f"{step.name}.{name}"
                size, hessian = sizes[full], hessians[name]
                rounded = gptq_linear(
                    linear,
                    WeightSpec(bits=ctx.bits.w, symmetric=False, group=size),
                    activation_of(
                        group, ActivationSpec(bits=ctx.bits.a, symmetric=False, group=size)
                    ),
                    hessian,
                )
                if ctx.bits.w < IDENTITY_WIDTH:
                    errors[full] = output_error(linear.weight, rounded.dequantized(), hessian)
                replace_module_(step.block, name, rounded)
    notes = (*shortage(samples, options.samples), *notes)
    return walk.report(passes=1, errors=errors.items(), notes=notes, curves=curves)
