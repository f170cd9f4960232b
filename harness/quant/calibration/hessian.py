"""Second moments of the inputs of linears: GPTQ's Hessians, and the output errors they give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.quant.calibration.capture import observing, run_block

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.models.block_input import BlockInput
    from harness.models.families.base import Family, InputGroup


class Hessian:
    """Running second moment of a layer's inputs, H = 2/n sum_i x_i x_i^T.

    Args:
        width: Input features.
        device: Where it is kept.
    """

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        self._sum = torch.zeros(width, width, dtype=torch.float32, device=device)
        self._count = 0

    def add(self, x: Tensor) -> None:
        """Add inputs ``[..., width]``."""
        rows = x.reshape(-1, x.shape[-1]).float()
        self._sum.addmm_(rows.T, rows)
        self._count += rows.shape[0]

    def matrix(self) -> Tensor:
        """The Hessian, float64 ``[width, width]``.

        Raises:
            ValueError: Nothing was added.
        """
        if self._count == 0:
            raise ValueError("no input was seen")
        return self._sum.double() * (2.0 / self._count)


def linear_hessians(
    block: nn.Module,
    family: Family,
    groups: Sequence[InputGroup],
    transforms: Mapping[str, Sequence[nn.Module]],
    inputs: Sequence[BlockInput],
) -> dict[str, Tensor]:
    """Second moments of the transformed inputs of every linear of a block.

    Linears that read the same tensor share one matrix; those of a split group, which read
    different tokens of one tensor, have their own.

    Args:
        block: Full-precision block.
        family: Its facts.
        groups: Groups of interest.
        transforms: Input transforms by group; absent groups have none.
        inputs: Block inputs.

    Returns:
        float64 ``[in_features, in_features]`` by name of the linear, relative to the block.
    """
    group_of = {linear: group for group in groups for linear in group.observed}
    found: dict[str, Hessian] = {}

    def see(linear: str, x: Tensor) -> None:
        for step in transforms.get(group_of[linear].name, ()):
            x = step(x)
        found.setdefault(linear, Hessian(x.shape[-1], x.device)).add(x)

    with torch.no_grad(), observing(block, list(group_of), see):
        for given in inputs:
            run_block(block, family, given)
    matrices = {linear: hessian.matrix() for linear, hessian in found.items()}
    return {
        linear: matrices[linear if group.split else group.linears[0]]
        for group in groups
        for linear in group.linears
    }


def output_error(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    """Relative output error of a rounded weight, ||X (W_q - W)^T||^2 / ||X W^T||^2.

    Exact over all inputs that the Hessian has seen, since it is their second moment.

    Args:
        weight: ``[out_features, in_features]``.
        rounded: The same on its grid.
        hessian: ``[in_features, in_features]``.
    """
    exact, wrong = weight.double(), rounded.double() - weight.double()
    size = float((exact @ hessian).mul_(exact).sum())
    return float((wrong @ hessian).mul_(wrong).sum()) / size if size > 0 else 0.0
