"""GPTQ (arXiv 2210.17323): rounding column by column, each error pushed into those to come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.quant.layers.grid import Affine, decode, encode, expand, storable, weight_grid

if TYPE_CHECKING:
    from collections.abc import Callable

PERCDAMP = 0.01  # GPTQ, "Step 3: Cholesky Reformulation"
BLOCK = 128  # GPTQ, "Step 2: Lazy Batch-Updates"


def gptq(
    weight: Tensor,
    hessian: Tensor,
    grid: Affine,
    bits: int,
    *,
    group: int = 0,
    percdamp: float = PERCDAMP,
    block: int = BLOCK,
    act_order: bool = False,
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
        act_order: Round the columns with the largest diagonal of the Hessian first (an option of
            the released code); each column keeps the grid of its own group.

    Returns:
        Codes as floats ``[out_features, in_features]``.
    """
    width = weight.shape[1]
    full = expand(grid, group)
    scale = full.scale.double().expand(-1, width)
    zero = None if full.zero is None else full.zero.double().expand(-1, width)
    order = torch.arange(width, device=weight.device)
    if act_order:
        order = torch.diagonal(hessian).argsort(descending=True, stable=True)
        weight, hessian = weight[:, order], hessian[order][:, order]

    def column(j: int, _: Tensor) -> Affine:
        k = order[j]
        return Affine(scale[:, k], None if zero is None else zero[:, k])

    codes = _sweep(weight, hessian, bits, percdamp, block, column)
    return codes[:, order.argsort()]


def gptq_current_groups(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    *,
    group: int,
    symmetric: bool = True,
    percdamp: float = PERCDAMP,
    block: int = BLOCK,
) -> tuple[Tensor, Affine]:
    """Round a weight by GPTQ, fitting the grid of each group when its first column is reached.

    The min-max grid is that of the weights as the columns before have updated them (GPTQ sec. 5,
    "175 Billion Parameter Models": group parameters from the most current updated weights).

    Args:
        weight: ``[out_features, in_features]``.
        hessian: ``[in_features, in_features]``.
        bits: Width.
        group: Group size, a divisor of the width.
        symmetric: Kind of grid.
        percdamp: Dampening as a fraction of the mean diagonal.
        block: Columns updated at once, raised to a multiple of the group size.

    Returns:
        Codes as floats ``[out_features, in_features]`` and the grid ``[out_features, groups]``,
        its steps in storage precision.

    Raises:
        ValueError: The width is not a multiple of the group size.
    """
    if group < 1 or weight.shape[1] % group:
        raise ValueError(f"width {weight.shape[1]} is not a multiple of group size {group}")
    grids: list[Affine] = []

    def column(j: int, work: Tensor) -> Affine:
        if j % group == 0:
            rows = work[:, j : j + group].float()
            fitted = weight_grid(rows, bits, symmetric=symmetric)
            grids.append(Affine(storable(fitted.scale), fitted.zero))
        current = grids[-1]
        zero = None if current.zero is None else current.zero[:, 0].double()
        return Affine(current.scale[:, 0].double(), zero)

    # whole groups in a block: updates beyond a block come late, and the fit needs them
    whole = -(-block // group) * group
    codes = _sweep(weight, hessian, bits, percdamp, whole, column)
    zeros = [grid.zero for grid in grids if grid.zero is not None]
    scale = torch.cat([grid.scale for grid in grids], 1)
    return codes, Affine(scale, torch.cat(zeros, 1) if zeros else None)


def _sweep(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    percdamp: float,
    block: int,
    column: Callable[[int, Tensor], Affine],
) -> Tensor:
    """Round column after column; ``column(j, updated weight)`` gives the grid ``[out]`` of one."""
    width = weight.shape[1]
    work = weight.detach().double().clone()
    dead = torch.diagonal(hessian) == 0
    work[:, dead] = 0
    root = _inverse_root(hessian, dead, percdamp)
    codes = torch.empty_like(work)
    for start in range(0, width, block):
        stop = min(start + block, width)
        errors = torch.empty_like(work[:, start:stop])
        for j in range(start, stop):
            grid = column(j, work)
            codes[:, j] = encode(work[:, j], grid, bits)
            error = (work[:, j] - decode(codes[:, j], grid)) / root[j, j]
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
