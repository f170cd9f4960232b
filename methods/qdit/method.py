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
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness.api import (
    SAME_BUDGET,
    SAME_TARGETS,
    Count,
    Deviation,
    Method,
    Prefix,
    QuantContext,
    QuantReport,
    Reproduction,
    Share,
    SpacedOptions,
    Whole,
    Work,
    options,
)
from harness.quant import (
    ActivationSpec,
    Walk,
    WeightSpec,
    activation_of,
    fitting_group,
    gptq_linear,
    group_note,
    uniform_samples,
)
from methods.qdit.evolution import Evolution
from methods.qdit.group_search import GroupSearch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from harness.api import BitSpec


@options
class QDiTOptions(SpacedOptions):
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
    """

    group: Count = 128  # Q-DiT's default
    search: bool = False
    sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64, 128, 192, 288)  # Q-DiT
    bitops: Annotated[float, Field(ge=1)] = 1.1
    population: Count = 50  # Q-DiT's released search script, as the five below
    parents: Count = 10
    mutations: Whole = 25
    crossovers: Whole = 15
    probability: Share = 0.1
    rounds: Whole = 10
    search_samples: Count = 8
    inputs: Prefix = "quantized"


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
        what="Hessians come from unrounded inputs",
        why="one pass of the samples through a block",
    ),
    SAME_BUDGET,
    SAME_TARGETS,
)


class QDiT(Method):
    """Groups along the input channels, GPTQ, dynamic activations."""

    name = "qdit"
    Options = QDiTOptions
    needs_calibration = True
    quick_s = 25.0
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

    def work(self, options: QDiTOptions, bits: BitSpec) -> Work:
        """Outputs, those of quantized blocks where asked for, Hessians; a search at its most."""
        passes, compared = 2 + (options.inputs == "quantized"), 0
        if options.search and not bits.is_identity:
            compared = 2 * (options.population * (options.rounds + 1) + 1)  # two guidance branches
        return Work(
            samples=options.samples, passes=passes,
            denoiser_passes=compared * options.search_samples,
        )  # fmt: skip

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Choose group sizes, then round block by block."""
        if not ctx.options.search or ctx.bits.is_identity:
            return round_(transformer, ctx, {})
        return _searched(transformer, ctx)


def _searched(transformer: nn.Module, ctx: QuantContext) -> QuantReport:
    """Search group sizes, then round, in place; the progress of the two is one."""
    options: QDiTOptions = ctx.options
    started = time.perf_counter()
    compared = uniform_samples(ctx.calibration, options.search_samples, options.timesteps)
    first = dataclasses.replace(ctx, progress=lambda f, text: ctx.progress(0.9 * f, text))
    search = GroupSearch(transformer, first, compared, options.sizes, options.group)
    found = search.search(_evolution(options), options.bitops)
    seconds = time.perf_counter() - started
    sizes = {
        name: size for names, size in zip(search.readers, found.best, strict=True) for name in names
    }
    spent = (found.evaluated + 1) * len(compared) * ctx.calibration.branches
    ratio = search.bitops(found.best) / search.bitops(search.start)
    note = (
        f"group sizes chosen from {found.evaluated} configurations; {ratio:.3f} times the "
        f"BitOps of groups of {options.group}"
    )
    curves = {"search_loss": list(found.curve), "group_size": [float(g) for g in found.best]}
    rest = dataclasses.replace(ctx, progress=lambda f, text: ctx.progress(0.9 + 0.1 * f, text))
    report = round_(transformer, rest, sizes, [note], curves)
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
    notes: Sequence[str] = (),
    curves: Mapping[str, list[float]] | None = None,
) -> QuantReport:
    """Round every target linear by GPTQ in its groups, block by block, in place.

    Args:
        transformer: The denoiser.
        ctx: Context of the method.
        sizes: Group size by qualified name of the linear; the others have the options' ``group``.
        notes: For the report.
        curves: For the report.
    """
    options: QDiTOptions = ctx.options
    walk = Walk(transformer, ctx, verb="rounding")
    for walked in walk:
        hessians = walked.hessians()
        for name, linear, group in walked.linears():
            default = fitting_group(linear.in_features, options.group)
            size = sizes.get(f"{walked.name}.{name}", default)
            weight = WeightSpec(bits=ctx.bits.w, symmetric=False, group=size)
            activation = ActivationSpec(bits=ctx.bits.a, symmetric=False, group=size)
            rounded = gptq_linear(linear, weight, activation_of(group, activation), hessians[name])
            walked.replace_(name, rounded, hessian=hessians[name])
    return walk.report(
        passes=1, notes=(*group_note(options.group, walk.widths), *notes), curves=curves
    )
