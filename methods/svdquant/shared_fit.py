"""SVDQuant's fit (arXiv 2411.05007) of the linears that read one tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from harness.api import IDENTITY_WIDTH
from harness.quant import (
    ActivationSpec,
    Affine,
    ChannelScale,
    LowRank,
    WeightSpec,
    decode,
    encode,
    expand,
    fitting_group,
    gptq_current_groups,
    linear_at,
    output_error,
    quantize_activation,
    quantize_linear,
    smoothing_scale,
    storable,
    stored_grid,
    weight_grid,
)
from methods.svdquant.branch import Factors, LeadingDirections, fitting_rank

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api import QuantContext
    from harness.quant import InputSummary, QuantLinear


class Rounded(NamedTuple):
    """A linear's quantized form and its relative output error, None where it was not measured."""

    name: str
    layer: QuantLinear
    error: float | None


def smoothing_pairs(points: int = 20) -> list[tuple[float, float]]:
    """Exponents (alpha, beta) of the search: (0, 0), (alpha, 0), (alpha, 1 - alpha)."""
    steps = [k / points for k in range(1, points)]
    return [(0.0, 0.0), *((a, 0.0) for a in steps), *((a, 1 - a) for a in steps)]


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
        self.options = ctx.options
        self.names, self.inputs = names, inputs
        linears = [linear_at(block, name) for name in names]
        self.stacked = torch.cat([linear.weight.detach().float() for linear in linears])
        self.sizes = [linear.out_features for linear in linears]
        size = fitting_group(self.stacked.shape[1], self.options.group)
        self.weight = WeightSpec(bits=ctx.bits.w, group=size)
        self.activation = ActivationSpec(bits=ctx.bits.a, group=size)
        self.rank = fitting_rank(self.stacked.shape[1], min(self.sizes), self.options.rank)
        self._directions = LeadingDirections()
        self.tokens = torch.cat(inputs.parts)
        self.exact = self.tokens @ self.stacked.T

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

    def round_residual(self, block: nn.Module, scale: Tensor, branch: Factors) -> list[Rounded]:
        """The linears on codes of R = W diag(s) - L, by GPTQ where asked for; L stays beside them.

        Args:
            block: Full-precision block.
            scale: Smoothing factors s, ``[in_features]``.
            branch: L.
        """
        mapped = self.stacked * scale
        residual = mapped - branch.product
        moment = self.second_moment(scale)
        codes, grid = self.gptq_codes(residual, moment)
        transforms = [] if bool((scale == 1).all()) else [ChannelScale(scale)]
        found, start = [], 0
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
            error = None
            if moment is not None:
                restored = layer.dequantized().float() + branch.product[rows]
                error = output_error(mapped[rows], restored, moment)
            found.append(Rounded(name, layer, error))
        return found

    def branch(self, matrix: Tensor) -> Factors:
        """Truncated SVD at the rank of these linears; empty factors at rank 0."""
        if self.rank == 0:
            out, width = matrix.shape
            return Factors(matrix.new_zeros(out, 0), matrix.new_zeros(0, width))
        return self._directions.truncated_svd(matrix, self.rank)

    def error(self, scale: Tensor, branch: Factors) -> float:
        """Squared output error on the kept tokens, the rest rounded to nearest."""
        z = self.tokens / scale
        rest = round_to_nearest(self.stacked * scale - branch.product, self.weight)
        return squared_error(self.exact, z, quantize_activation(z, self.activation), branch, rest)

    def gptq_codes(
        self, residual: Tensor, moment: Tensor | None
    ) -> tuple[Tensor | None, Affine | None]:
        """Codes and grid of the residual; None leaves it to rounding to nearest."""
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
