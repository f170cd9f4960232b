"""GPTQ against a naive float64 loop, and against rounding to nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.quant.gptq import Hessian, gptq
from harness.quant.grid import Affine, decode, encode, expand, weight_grid


def naive_gptq(weight: Tensor, hessian: Tensor, grid: Affine, bits: int, damp: float) -> Tensor:
    """Optimal brain quantization in fixed order, the inverse by elimination (GPTQ sec. 3)."""
    w = weight.double().clone()
    size = w.shape[1]
    damped = hessian.double() + damp * torch.diagonal(hessian).mean() * torch.eye(size).double()
    inverse = torch.linalg.inv(damped)
    codes = torch.zeros_like(w)
    for j in range(size):
        column = Affine(grid.scale[:, 0].double(), None)
        codes[:, j] = encode(w[:, j], column, bits)
        error = (w[:, j] - decode(codes[:, j], column)) / inverse[0, 0]
        w[:, j + 1 :] -= error[:, None] * inverse[0, 1:]
        inverse = (inverse - inverse[:, :1] @ inverse[:1] / inverse[0, 0])[1:, 1:]
    return codes.float()


def correlated(rows: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(rows, width, generator=generator) @ mixing


@pytest.mark.parametrize("block", [4, 128])
def test_gptq_equals_the_naive_elimination(block: int) -> None:
    x = correlated(200, 24, 0)
    hessian = Hessian(24)
    hessian.add(x)
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    grid = weight_grid(weight, 4)
    ours = gptq(weight, hessian.matrix(), grid, 4, block=block)
    assert torch.equal(ours, naive_gptq(weight, hessian.matrix(), grid, 4, 0.01))


def test_gptq_beats_rounding_to_nearest_on_correlated_inputs() -> None:
    ratios = []
    for seed in range(9):
        x = correlated(500, 32, seed)
        hessian = Hessian(32)
        hessian.add(x[:250])
        hessian.add(x[250:])
        weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(seed))
        grid = weight_grid(weight, 3)
        exact = x @ weight.T
        errors = [
            (x @ decode(codes, grid).T - exact).square().sum()
            for codes in (gptq(weight, hessian.matrix(), grid, 3), encode(weight, grid, 3))
        ]
        ratios.append(float(errors[0] / errors[1]))
    assert sorted(ratios)[4] < 0.7, ratios


def test_gptq_is_rounding_to_nearest_for_a_diagonal_hessian() -> None:
    weight = torch.randn(8, 40, generator=torch.Generator().manual_seed(2))
    grid = weight_grid(weight, 4, group=8)
    hessian = torch.diag(torch.rand(40, dtype=torch.float64) + 0.1)
    codes = gptq(weight, hessian, grid, 4, group=8, block=16)
    assert torch.equal(codes, encode(weight, expand(grid, 8), 4))


def test_a_channel_that_is_never_active_does_not_break_it() -> None:
    x = correlated(100, 12, 3)
    x[:, 5] = 0
    hessian = Hessian(12)
    hessian.add(x)
    weight = torch.randn(4, 12)
    codes = gptq(weight, hessian.matrix(), weight_grid(weight, 4), 4)
    assert bool(torch.isfinite(codes).all())
    assert bool((codes[:, 5] == 0).all())


def test_a_hessian_without_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="no input"):
        Hessian(4).matrix()
