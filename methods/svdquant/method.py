"""SVDQuant: absorbing outliers by low-rank components for 4-bit diffusion models.

arXiv 2411.05007, ICLR 2025. In three steps for every input that linears share:
1. Smoothing: every channel is divided by max|X|^alpha / max|W|^beta, which moves the outliers of
   the activations into the weights.
2. A low-rank branch in 16 bits takes the largest singular directions of the smoothed weight; the
   rest R is easy to round. Branch and rounding are fitted in turn.
3. R is rounded by GPTQ; weights and activations have one step for each group of 64 channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness.api import (
    IDENTITY_WIDTH,
    Count,
    Method,
    QuantContext,
    QuantReport,
    Rounding,
    SpacedOptions,
    Whole,
    Work,
    options,
)
from harness.quant import (
    ActivationSpec,
    Walk,
    WeightSpec,
    fitting_group,
    group_note,
    linear_at,
    quantize_linear,
    summarise_inputs,
)
from methods.svdquant.paper import REPRODUCTION
from methods.svdquant.shared_fit import SharedFit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from harness.api import BitSpec
    from harness.quant import InputGroup, InputSummary, QuantLinear, WalkedBlock


@options
class SVDQuantOptions(SpacedOptions):
    """Knobs of SVDQuant.

    Attributes:
        rank: Rank of the branch; 0 leaves it out. At most a quarter of the smaller side.
        group: Channels that share a step, of weights and activations.
        smoothing: Search the smoothing; False leaves the channels as they are.
        points: Exponents are multiples of 1/points: 2 points - 1 pairs are tried.
        iterations: Most refits of the branch to what the rounding lost.
        rounding: ``gptq`` or ``rtn``, of the final residual.
        tokens: Tokens of each input that the searches measure the output error on.
    """

    rank: Whole = 32  # released configuration
    group: Count = 64  # released configuration, INT4
    smoothing: bool = True
    points: Annotated[int, Field(ge=2)] = 20  # released configuration: exponents k / 20
    iterations: Whole = 100  # released configuration
    rounding: Rounding = "gptq"  # SVDQuant App. D
    tokens: Count = 2048


class SVDQuant(Method):
    """Smoothing, a low-rank branch in 16 bits, grouped 4-bit rounding of the rest."""

    name = "svdquant"
    version = 2
    Options = SVDQuantOptions
    needs_calibration = True
    reproduction = REPRODUCTION

    def work(self, options: SVDQuantOptions, bits: BitSpec) -> Work:
        """Outputs and statistics; the searches run on kept tokens."""
        del bits
        return Work(samples=options.samples, passes=2, searches=True)

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Quantize block by block, one shared input after the other."""
        chosen: SVDQuantOptions = ctx.options
        fitted: list[tuple[int, int]] = []
        walk = Walk(transformer, ctx, state={"fitted": fitted})
        for step in walk:
            with ctx.part("statistics"):
                inputs = summarise_inputs(
                    step.block, ctx.family, [g for g in step.groups if not g.modulation],
                    step.inputs, tokens=chosen.tokens, second_moment=chosen.rounding == "gptq",
                    generator=ctx.generator(salt=100 + step.index),
                )  # fmt: skip
            for group in step.groups:
                if group.modulation:
                    for name in group.linears:
                        step.replace_(name, round_modulation(linear_at(step.block, name), ctx))
                    continue
                for fit in shared_fits(step, group, inputs, ctx):
                    with ctx.part("smoothing search"):
                        scale = fit.search_smoothing()
                    with ctx.part("low-rank branch"):
                        branch = fit.fit_branch(scale)
                    with ctx.part("rounding"):
                        for rounded in fit.round_residual(step.block, scale, branch):
                            step.replace_(rounded.name, rounded.layer, error=rounded.error)
                    fitted.append((fit.stacked.shape[1], fit.rank))
        notes = (
            *group_note(chosen.group, [width for width, _ in fitted]),
            *_rank_note(chosen.rank, fitted),
            *_branch_note(chosen.rank),
        )
        return walk.report(passes=1, notes=notes)


def shared_fits(
    step: WalkedBlock, group: InputGroup, inputs: dict[str, InputSummary], ctx: QuantContext
) -> Iterator[SharedFit]:
    """One fit of all linears of an input; one of each where they read different tokens."""
    for names in [(name,) for name in group.linears] if group.split else [group.linears]:
        yield SharedFit(step.block, names, inputs[names[0]], ctx)


def round_modulation(linear: nn.Linear, ctx: QuantContext) -> QuantLinear:
    """Weights alone, in groups, rounded to nearest."""
    size = fitting_group(linear.in_features, ctx.options.group)
    weight = WeightSpec(bits=ctx.bits.w, group=size)
    return quantize_linear(linear, weight, ActivationSpec(bits=IDENTITY_WIDTH))


def _rank_note(rank: int, fitted: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Note where the rank asked for was more than a branch should take."""
    other = sorted({(width, found) for width, found in fitted if found != rank})
    if not other:
        return ()
    named = ", ".join(f"{found} at width {width}" for width, found in other)
    return (f"a branch of rank {rank} would hold most of a narrow weight; rank {named}",)


def _branch_note(rank: int) -> tuple[str, ...]:
    if rank == 0:
        return ("no low-rank branch",)
    return ("the branch reads its inputs at 16 bits, beside the average activation width",)
