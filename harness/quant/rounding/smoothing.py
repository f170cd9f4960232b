"""Moving the size of channels from activations to weights: statistics, scale, and where it goes.

SmoothQuant (arXiv 2211.10438) and AWQ (arXiv 2306.00978) divide every channel of an input by its
own factor and multiply it into the weights that read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.models.families.fold import fold_scale_
from harness.quant.calibration.capture import observing, run_block
from harness.quant.layers.grid import storable
from harness.quant.layers.transform import ChannelScale
from harness.quant.rounding.gptq import Hessian

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.models.block_input import BlockInput
    from harness.models.families.base import Family, InputGroup

LOWEST, HIGHEST = 1e-5, 1e5
"""Bounds of a factor: beyond them a folded weight would leave the range of half precision."""


@dataclass(kw_only=True, slots=True)
class InputSummary:
    """What is kept of an input over the calibration samples.

    Attributes:
        peak: Maximum over all tokens of |x_j|, ``[in_features]``.
        total: Sum over all tokens of |x_j|, ``[in_features]``.
        count: Tokens seen.
        parts: Kept tokens of each call, ``[kept, in_features]``.
        hessian: Second moment over all tokens, None if not asked for.
    """

    peak: Tensor
    total: Tensor
    count: int = 0
    parts: list[Tensor]
    hessian: Hessian | None

    def tokens(self) -> Tensor:
        """The kept tokens, ``[kept, in_features]``."""
        return torch.cat(self.parts)

    def second_moment(self) -> Tensor:
        """The Hessian, float64 ``[in_features, in_features]``.

        Raises:
            ValueError: None was kept.
        """
        if self.hessian is None:
            raise ValueError("no second moment was kept")
        return self.hessian.matrix()

    def add(self, x: Tensor, keep: int, generator: torch.Generator) -> None:
        """Take in ``[tokens, in_features]``, keeping ``keep`` tokens drawn without replacement."""
        size = x.abs()
        self.peak = torch.maximum(self.peak, size.amax(0))
        self.total = self.total + size.sum(0)
        self.count += x.shape[0]
        if keep:
            # drawn, not every n-th: a stride could fall in with the width of the token grid
            drawn = torch.randperm(x.shape[0], generator=generator)[:keep].sort().values
            self.parts.append(x[drawn.to(x.device)].clone())
        if self.hessian is not None:
            self.hessian.add(x)


@torch.no_grad()
def summarise_inputs(
    block: nn.Module,
    family: Family,
    groups: Sequence[InputGroup],
    inputs: Sequence[BlockInput],
    *,
    tokens: int,
    second_moment: bool,
    generator: torch.Generator,
) -> dict[str, InputSummary]:
    """Run a block on every sample and summarise the inputs of its linears, in one pass.

    Args:
        block: Full-precision block.
        family: Its facts.
        groups: Groups of interest.
        inputs: Block inputs.
        tokens: Tokens of each input kept over all samples, about; 0 keeps none.
        second_moment: Keep Hessians.
        generator: Draws the tokens.

    Returns:
        Summaries by name of the linear; linears that read the same tensor share one.
    """
    observed = [linear for group in groups for linear in group.observed]
    keep = -(-tokens // len(inputs))
    found: dict[str, InputSummary] = {}

    def see(linear: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        if linear not in found:
            width, device = rows.shape[1], rows.device
            zeros = torch.zeros(width, device=device)
            hessian = Hessian(width, device) if second_moment else None
            found[linear] = InputSummary(peak=zeros, total=zeros, parts=[], hessian=hessian)
        found[linear].add(rows, keep, generator)

    with observing(block, observed, see):
        for given in inputs:
            run_block(block, family, given)
    return {
        linear: found[linear if group.split else group.linears[0]]
        for group in groups
        for linear in group.linears
    }


def smoothing_scale(
    activation: Tensor, weight: Tensor, alpha: float, beta: float | None = None
) -> Tensor:
    """SmoothQuant's factor, s_j = max|X_j|^alpha / max|W_j|^beta with beta = 1 - alpha.

    Args:
        activation: max|X_j|, ``[in_features]``.
        weight: max|W_j| over every linear that reads the input, ``[in_features]``.
        alpha: Migration strength, 0 to 1; the larger, the more goes into the weights.
        beta: Exponent of the weight where it is not 1 - alpha (SVDQuant, arXiv 2411.05007).

    Returns:
        ``[in_features]``; 1 where the channel or its weights are zero.
    """
    scale = activation.double() ** alpha / weight.double() ** (1 - alpha if beta is None else beta)
    used = (activation > 0) & (weight > 0)
    return torch.where(used, scale, 1.0).clamp(LOWEST, HIGHEST).float()


def apply_scale_(block: nn.Module, group: InputGroup, scale: Tensor) -> list[nn.Module]:
    """Divide the shared input of a group by ``scale``, folded into its producer where possible.

    Args:
        block: Block with plain linears, changed in place where the family can fold.
        group: The group.
        scale: ``[in_features]``, positive.

    Returns:
        Input transforms of what stays online; the weights of those channels are untouched, the
        transform maps them.
    """
    rest = scale if group.fold is None else fold_scale_(block, group, scale)
    return [] if rest is None else [ChannelScale(storable(rest.float()))]
