"""SVDQuant: absorbing outliers by low-rank components for 4-bit diffusion models.

arXiv 2411.05007, ICLR 2025. In three steps for every input that linears share:
1. Smoothing: every channel is divided by max|X|^alpha / max|W|^beta, which moves the outliers of
   the activations into the weights.
2. A low-rank branch in 16 bits takes the largest singular directions of the smoothed weight; the
   rest R is easy to round. Branch and rounding are fitted in turn.
3. R is rounded by GPTQ; weights and activations have one step for each group of 64 channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from harness.api import (
    IDENTITY_WIDTH,
    BitSpec,
    Deviation,
    QuantContext,
    QuantReport,
    Reproduction,
    Unsupported,
)
from harness.models.families.base import linear_at
from harness.quant.calibration.capture import BRANCHES
from harness.quant.calibration.salience import shortage
from harness.quant.calibration.samples import uniform_samples
from harness.quant.calibration.walk import Walk, block_groups
from harness.quant.layers.activation import ActivationSpec, quantize_activation
from harness.quant.layers.apply import MODULATION
from harness.quant.layers.grid import Affine, decode, encode, expand, storable, weight_grid
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import WeightSpec, fitting_group, quantize_linear, stored_grid
from harness.quant.layers.low_rank import LowRank
from harness.quant.layers.transform import ChannelScale
from harness.quant.options import check_choice, check_range
from harness.quant.rounding.gptq import gptq_current_groups, output_error
from harness.quant.rounding.groups import group_note
from harness.quant.rounding.smoothing import smoothing_scale, summarise_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.models.families.base import InputGroup
    from harness.quant.rounding.smoothing import InputSummary

LEAST_SHARE = 4
"""A branch has at most this fraction of the rank that the weight could have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SVDQuantOptions:
    """Knobs of SVDQuant.

    Attributes:
        rank: Rank of the branch; 0 leaves it out. At most a quarter of the smaller side.
        group: Channels that share a step, of weights and activations.
        smoothing: Search the smoothing; False leaves the channels as they are.
        points: Exponents are multiples of 1/points: 2 points - 1 pairs are tried.
        iterations: Most refits of the branch to what the rounding lost.
        rounding: ``gptq`` or ``rtn``, of the final residual.
        samples: (prompt, timestep) samples.
        timesteps: Equally spaced timesteps they come from.
        tokens: Tokens of each input that the searches measure the output error on.
        branches: Guidance branches of a sample: ``both``, ``alternate`` or ``cond``.
        modulation: ``w`` quantizes the weights of modulation linears, ``fp`` leaves them out.
    """

    rank: int = 32  # released configuration
    group: int = 64  # released configuration, INT4
    smoothing: bool = True
    points: int = 20  # released configuration: exponents k / 20
    iterations: int = 100  # released configuration
    rounding: str = "gptq"  # SVDQuant App. D
    samples: int = 40
    timesteps: int = 10
    tokens: int = 2048
    branches: str = "alternate"
    modulation: str = "w"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: A value is unknown or out of range.
        """
        for option in ("rank", "iterations"):
            check_range(option, getattr(self, option), 0)
        for option in ("group", "samples", "timesteps", "tokens"):
            check_range(option, getattr(self, option), 1)
        check_range("points", self.points, 2)
        check_choice("rounding", self.rounding, ("gptq", "rtn"))
        check_choice("branches", self.branches, BRANCHES)
        check_choice("modulation", self.modulation, MODULATION)


_DEVIATIONS = (
    Deviation(
        kind="adaptation",
        what="blocks and inputs are those of a video DiT; 40 samples, 4 prompts at each of 10 "
        "timesteps, one guidance branch each; the released configuration takes 128 image captions "
        "and all timesteps",
        why="the paper treats image models; the other methods here see the same number of samples",
    ),
    Deviation(
        kind="adaptation",
        what="the output error of the searches is measured on 2048 tokens of each input, drawn "
        "evenly over the samples",
        why="the inputs of a video do not fit in memory",
    ),
    Deviation(
        kind="adaptation",
        what="the smoothing stays a division in front of the layer; no family's producers take it",
        why="the function is the same, and every input has it, also behind a nonlinearity",
    ),
    Deviation(
        kind="adaptation",
        what="the rank is at most a quarter of a weight's smaller side, and the report says where; "
        "32 stands from a width of 128 on",
        why="a branch of rank 32 would hold all of a miniature's weight",
    ),
    Deviation(
        kind="reconstructed",
        what="all linears that read one tensor share smoothing and down-projection, whatever "
        "their number (q, k, v and the feed-forward of a single-stream block)",
        why="the configuration stacks q, k and v; other layers of one input are not named",
    ),
    Deviation(
        kind="reconstructed",
        what="the refits of the branch round to nearest, GPTQ rounds the residual of the best one; "
        "damping 0.01, group grids from the updated weights, Hessians of the smoothed unrounded "
        "inputs",
        why="the paper names GPTQ and the iteration, not how they meet",
    ),
    Deviation(
        kind="deviation",
        what="activations are signed in every layer; the release shifts the input of the second "
        "feed-forward linear by 0.171875 and rounds it unsigned",
        why="the shift holds for one GELU and one range of it; families here have others",
    ),
    Deviation(
        kind="deviation",
        what="modulation linears: weights in groups of 64 at the nominal width, 16-bit "
        "activations, no smoothing, no branch, symmetric and rounded to nearest",
        why="the release keeps their activations at 16 bits too, in another weight format",
    ),
    Deviation(
        kind="deviation",
        what="one recipe at every width: groups of 64 and the branch also at w8a8, integer grids "
        "only; embeddings and projections outside the blocks stay at full precision, as in the "
        "release; cross-attention keys and values are quantized",
        why="rows of one method differ in nothing but the label; which further layers the release "
        "keeps differs from model to model",
    ),
)


class SVDQuant:
    """Smoothing, a low-rank branch in 16 bits, grouped 4-bit rounding of the rest."""

    name = "svdquant"
    version = 1
    Options = SVDQuantOptions
    needs_calibration = True
    unquantized = False
    reproduction = Reproduction(
        title="SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models",
        source="arXiv 2411.05007 (ICLR 2025)",
        code="https://github.com/mit-han-lab/deepcompressor",
        rows=(
            "PixArt-Sigma INT W4A4, MJHQ, table 1: FID 20.1, ImageReward 0.898, LPIPS 0.394, PSNR "
            "16.2 (fp16 16.6, 0.944); an image model: no video rows by the authors",
        ),
        deviations=_DEVIATIONS,
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Every family and width."""
        return None

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Quantize block by block, one shared input after the other."""
        options: SVDQuantOptions = ctx.options
        samples = uniform_samples(ctx.calibration, options.samples, options.timesteps)
        walk = Walk(transformer, ctx, samples, branches=options.branches)
        errors: list[tuple[str, float]] = []
        fitted: list[tuple[int, int]] = []
        for step in walk:
            groups = block_groups(ctx.family, step.block, options.modulation)
            inputs = summarise_inputs(
                step.block, ctx.family, [g for g in groups if not g.modulation], step.inputs,
                tokens=options.tokens, second_moment=options.rounding == "gptq",
                generator=ctx.generator(salt=100 + step.index),
            )  # fmt: skip
            for group in groups:
                if group.modulation:
                    _round_modulation_(step.block, group, ctx)
                    continue
                for linears in [(n,) for n in group.linears] if group.split else [group.linears]:
                    fit = SharedFit(step.block, linears, inputs[linears[0]], ctx)
                    errors += [(f"{step.name}.{n}", e) for n, e in fit.replace_(step.block)]
                    fitted.append((fit.stacked.shape[1], fit.rank))
        notes = (
            *shortage(samples, options.samples),
            *group_note(options.group, [width for width, _ in fitted]),
            *_rank_note(options.rank, fitted),
            *_branch_note(options.rank),
        )
        return walk.report(passes=1, errors=errors, notes=notes)


def smoothing_pairs(points: int = 20) -> list[tuple[float, float]]:
    """Exponents (alpha, beta) of the search: (0, 0), (alpha, 0), (alpha, 1 - alpha)."""
    steps = [k / points for k in range(1, points)]
    return [(0.0, 0.0), *((a, 0.0) for a in steps), *((a, 1 - a) for a in steps)]


class Factors(NamedTuple):
    """A branch: ``up`` ``[out, rank]`` times ``down`` ``[rank, in]``, as the artifact holds it."""

    up: Tensor
    down: Tensor

    @property
    def product(self) -> Tensor:
        """``[out, in]``."""
        return self.up @ self.down


def truncated_svd(matrix: Tensor, rank: int) -> Factors:
    """Best approximation of a matrix by one of a rank, its factors in half precision.

    From the eigenvectors of the smaller Gram matrix in double precision: the leading directions
    are all that is wanted.

    Args:
        matrix: ``[out, in]``.
        rank: At most the smaller side.
    """
    wide = matrix.double()
    tall = wide.shape[0] > wide.shape[1]
    gram = wide.T @ wide if tall else wide @ wide.T
    values, vectors = torch.linalg.eigh(gram)
    leading = vectors[:, -rank:].flip(1)
    # the singular values shared evenly: both factors then lie well inside half precision
    root = values[-rank:].flip(0).clamp_min(0).sqrt().sqrt()
    inverse = torch.where(root > 0, 1 / root, 0.0)
    if tall:
        up, down = wide @ leading * inverse, (leading * root).T
    else:
        up, down = leading * root, (leading * inverse).T @ wide
    return Factors(_half(up), _half(down))


def _half(value: Tensor) -> Tensor:
    """Round to a 16-bit format that holds the values, back in single precision."""
    fits = bool(value.abs().amax() <= torch.finfo(torch.float16).max)
    return value.to(torch.float16 if fits else torch.bfloat16).float()


def round_to_nearest(weight: Tensor, spec: WeightSpec) -> Tensor:
    """A weight on its min-max grid; itself at width 16."""
    if spec.bits == IDENTITY_WIDTH:
        return weight
    grid = weight_grid(weight, spec.bits, symmetric=spec.symmetric, group=spec.group)
    wide = expand(stored_grid(grid), spec.group)
    return decode(encode(weight, wide, spec.bits), wide)


def squared_error(
    exact: Tensor, z: Tensor, rounded: Tensor, branch: Factors, rest: Tensor
) -> float:
    """Squared output error of ``z L^T + Q(z) Q(R)^T``.

    Args:
        exact: Outputs of the layer, ``[tokens, out]``.
        z: Smoothed inputs ``[tokens, in]``.
        rounded: Q(z).
        branch: L.
        rest: Q(R) ``[out, in]``.
    """
    approximate = (z @ branch.down.T) @ branch.up.T + rounded @ rest.T
    return float((approximate - exact).double().square().sum())


class SharedFit:
    """Smoothing, branch and rounding of the linears that read one tensor, stacked along outputs.

    Args:
        block: Full-precision block.
        names: The linears.
        inputs: What is kept of their input.
        ctx: Context of the method.
    """

    def __init__(
        self, block: nn.Module, names: tuple[str, ...], inputs: InputSummary, ctx: QuantContext
    ) -> None:
        self.options: SVDQuantOptions = ctx.options
        self.names, self.inputs = names, inputs
        linears = [linear_at(block, name) for name in names]
        self.stacked = torch.cat([linear.weight.detach().float() for linear in linears])
        self.sizes = [linear.out_features for linear in linears]
        size = fitting_group(self.stacked.shape[1], self.options.group)
        self.weight = WeightSpec(bits=ctx.bits.w, group=size)
        self.activation = ActivationSpec(bits=ctx.bits.a, group=size)
        self.rank = fitting_rank(self.stacked.shape[1], min(self.sizes), self.options.rank)
        self.tokens = torch.cat(inputs.parts)
        self.exact = self.tokens @ self.stacked.T

    def replace_(self, block: nn.Module) -> list[tuple[str, float]]:
        """Replace the linears in place; return their relative output errors where measured."""
        scale = self.search_smoothing()
        mapped = self.stacked * scale
        branch = self.fit_branch(scale)
        residual = mapped - branch.product
        moment = self.second_moment(scale)
        codes, grid = self.round(residual, moment)
        transforms = [] if bool((scale == 1).all()) else [ChannelScale(scale)]
        errors = []
        start = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            rows = slice(start, start + size)
            start += size
            layer = quantize_linear(
                linear_at(block, name), self.weight, self.activation,
                transforms=transforms, mapped=residual[rows],
                codes=None if codes is None else codes[rows],
                grid=None if grid is None else Affine(grid.scale[rows], None),
                low_rank=self.low_rank(branch, rows),
            )  # fmt: skip
            if moment is not None:
                found = layer.dequantized().float() + branch.product[rows]
                errors.append((name, output_error(mapped[rows], found, moment)))
            replace_module_(block, name, layer)
        return errors

    def search_smoothing(self) -> Tensor:
        """Factors with the smallest output error, the branch active, ``[in_features]``."""
        peak = self.stacked.abs().amax(0)
        pairs = smoothing_pairs(self.options.points) if self.options.smoothing else [(0.0, 0.0)]
        best, least = torch.ones_like(peak), float("inf")
        for alpha, beta in pairs:
            scale = storable(smoothing_scale(self.inputs.peak, peak, alpha, beta))
            error = self.error(scale, self.branch(self.stacked * scale))
            if error < least:
                best, least = scale, error
        return best

    def fit_branch(self, scale: Tensor) -> Factors:
        """L_(i+1) = SVD_r(W - Q(W - L_i)) until the output error no longer falls; the best."""
        mapped = self.stacked * scale
        best = self.branch(mapped)
        if self.rank == 0 or self.weight.bits == IDENTITY_WIDTH:
            return best
        least = self.error(scale, best)
        for _ in range(self.options.iterations):
            rest = round_to_nearest(mapped - best.product, self.weight)
            refit = self.branch(mapped - rest)
            error = self.error(scale, refit)
            if error >= least:
                break
            best, least = refit, error
        return best

    def branch(self, matrix: Tensor) -> Factors:
        """Truncated SVD at the rank of these linears; empty factors at rank 0."""
        if self.rank == 0:
            out, width = matrix.shape
            return Factors(matrix.new_zeros(out, 0), matrix.new_zeros(0, width))
        return truncated_svd(matrix, self.rank)

    def error(self, scale: Tensor, branch: Factors) -> float:
        """Squared output error on the kept tokens, the rest rounded to nearest."""
        z = self.tokens / scale
        rest = round_to_nearest(self.stacked * scale - branch.product, self.weight)
        return squared_error(self.exact, z, quantize_activation(z, self.activation), branch, rest)

    def round(self, residual: Tensor, moment: Tensor | None) -> tuple[Tensor | None, Affine | None]:
        """Codes and grid of the residual by GPTQ; None leaves it to rounding to nearest."""
        if moment is None or self.weight.bits == IDENTITY_WIDTH:
            return None, None
        return gptq_current_groups(
            residual, moment, self.weight.bits,
            group=self.weight.group, symmetric=self.weight.symmetric,
        )  # fmt: skip

    def second_moment(self, scale: Tensor) -> Tensor | None:
        """Hessian of the smoothed inputs: that of the inputs, divided by both channels' factors."""
        if self.inputs.hessian is None:
            return None
        wide = scale.double()
        return self.inputs.second_moment() / (wide[:, None] * wide[None, :])

    def low_rank(self, branch: Factors, rows: slice) -> LowRank | None:
        """Branch of one linear; the down-projection is the same tensor in all of them."""
        if self.rank == 0:
            return None
        return LowRank(branch.down, branch.up[rows].clone(), rounded=False)


def fitting_rank(in_features: int, out_features: int, rank: int) -> int:
    """Rank asked for, at most a quarter of what the weight could have: miniatures are narrow."""
    return min(rank, max(1, min(in_features, out_features) // LEAST_SHARE))


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


def _round_modulation_(block: nn.Module, group: InputGroup, ctx: QuantContext) -> None:
    """Weights alone, in groups, rounded to nearest."""
    for name in group.linears:
        linear = linear_at(block, name)
        spec = WeightSpec(
            bits=ctx.bits.w, group=fitting_group(linear.in_features, ctx.options.group)
        )
        layer = quantize_linear(linear, spec, ActivationSpec(bits=IDENTITY_WIDTH))
        replace_module_(block, name, layer)
