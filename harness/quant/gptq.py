"""GPTQ (arXiv 2210.17323): rounding column by column, each error pushed into those to come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.quant.capture import BlockInput, observing, run_block
from harness.quant.grid import Affine, decode, encode, expand

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.models.families.base import Family, InputGroup

PERCDAMP = 0.01  # GPTQ, "Step 3: Cholesky Reformulation"
BLOCK = 128  # GPTQ, "Step 2: Lazy Batch-Updates"


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


def group_hessians(
    block: nn.Module,
    family: Family,
    groups: Sequence[InputGroup],
    transforms: Mapping[str, Sequence[nn.Module]],
    inputs: Sequence[BlockInput],
) -> dict[str, Tensor]:
    """Second moments of the transformed inputs of every group of a block.

    Args:
        block: Full-precision block.
        family: Its facts.
        groups: Groups of interest.
        transforms: Input transforms by group; absent groups have none.
        inputs: Block inputs.

    Returns:
        float64 ``[in_features, in_features]`` by group.
    """
    by_linear = {group.linears[0]: group.name for group in groups}
    found: dict[str, Hessian] = {}

    def see(linear: str, x: Tensor) -> None:
        name = by_linear[linear]
        for step in transforms.get(name, ()):
            x = step(x)
        found.setdefault(name, Hessian(x.shape[-1], x.device)).add(x)

    with torch.no_grad(), observing(block, list(by_linear), see):
        for given in inputs:
            run_block(block, family, given)
    return {name: hessian.matrix() for name, hessian in found.items()}


def gptq(
    weight: Tensor,
    hessian: Tensor,
    grid: Affine,
    bits: int,
    *,
    group: int = 0,
    percdamp: float = PERCDAMP,
    block: int = BLOCK,
) -> Tensor:
    """Round a weight so that the layer's output error, not the weight's, is small.

    Args:
        weight: ``[out_features, in_features]`` in the basis the layer computes in.
        hessian: ``[in_features, in_features]``, of the inputs in that basis.
        grid: Step and zero point ``[out_features, groups]``, fixed beforehand (static groups).
        bits: Width.
        group: Group size of the grid, 0 for none.
        percdamp: Dampening as a fraction of the mean diagonal.
        block: Columns updated at once.

    Returns:
        Codes as floats ``[out_features, in_features]``.
    """
    width = weight.shape[1]
    work = weight.detach().double().clone()
    full = expand(Affine(grid.scale.double(), grid.zero), group)
    scale = full.scale.expand(-1, width)
    zero = None if full.zero is None else full.zero.double().expand(-1, width)
    dead = torch.diagonal(hessian) == 0
    work[:, dead] = 0
    root = _inverse_root(hessian, dead, percdamp)
    codes = torch.empty_like(work)
    for start in range(0, width, block):
        stop = min(start + block, width)
        errors = torch.empty_like(work[:, start:stop])
        for j in range(start, stop):
            column = Affine(scale[:, j], None if zero is None else zero[:, j])
            codes[:, j] = encode(work[:, j], column, bits)
            error = (work[:, j] - decode(codes[:, j], column)) / root[j, j]
            work[:, j + 1 : stop] -= error[:, None] * root[j, j + 1 : stop]
            errors[:, j - start] = error
        work[:, stop:] -= errors @ root[start:stop, stop:]
    return codes.float()


def _inverse_root(hessian: Tensor, dead: Tensor, percdamp: float) -> Tensor:
    """Upper Cholesky factor of the damped inverse Hessian."""
    damped = hessian.clone()
    diagonal = torch.diagonal(damped)
    diagonal[dead] = 1
    diagonal += percdamp * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
