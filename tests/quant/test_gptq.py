"""GPTQ against a naive float64 loop, and against rounding to nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.quant.calibration.hessian import Hessian, output_error
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.grid import Affine, decode, encode, expand, weight_grid
from harness.quant.layers.linear import WeightSpec
from harness.quant.layers.transform import Hadamard
from harness.quant.rounding.gptq import gptq, gptq_current_groups
from harness.quant.rounding.gptq_linear import gptq_linear


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


def skewed(rows: int, width: int, seed: int) -> Tensor:
    """Correlated inputs whose channels differ in size, the largest last."""
    return correlated(rows, width, seed) * torch.logspace(-1, 1, width)


@pytest.mark.parametrize("group", [0, 6])
def test_act_order_equals_a_run_on_permuted_columns(group: int) -> None:
    x = skewed(300, 24, 0)
    hessian = Hessian(24)
    hessian.add(x)
    h = hessian.matrix()
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    grid = weight_grid(weight, 4, symmetric=False, group=group)
    wide = expand(grid, group)
    order = sorted(range(24), key=lambda j: -float(h[j, j]))
    if group:
        assert wide.zero is not None
        own = Affine(wide.scale[:, order], wide.zero[:, order])
        permuted = gptq(weight[:, order], h[order][:, order], own, 4, group=1)
    else:
        permuted = gptq(weight[:, order], h[order][:, order], grid, 4)
    expected = torch.empty_like(permuted)
    for place, j in enumerate(order):
        expected[:, j] = permuted[:, place]
    ours = gptq(weight, h, grid, 4, group=group, act_order=True)
    assert torch.equal(ours, expected)
    assert not torch.equal(ours, gptq(weight, h, grid, 4, group=group))


def test_act_order_equals_the_naive_elimination_in_that_order() -> None:
    hessian = Hessian(20)
    hessian.add(skewed(300, 20, 4))
    h = hessian.matrix()
    weight = torch.randn(5, 20, generator=torch.Generator().manual_seed(4))
    grid = weight_grid(weight, 3)
    order = sorted(range(20), key=lambda j: -float(h[j, j]))
    naive = naive_gptq(weight[:, order], h[order][:, order], grid, 3, 0.01)
    ours = gptq(weight, h, grid, 3, act_order=True, block=7)
    assert torch.equal(ours[:, order], naive)


def test_act_order_lowers_the_median_error_where_channels_differ_in_size() -> None:
    ratios = []
    for seed in range(9):
        hessian = Hessian(32)
        hessian.add(skewed(500, 32, seed))
        h = hessian.matrix()
        weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(seed))
        grid = weight_grid(weight, 3)
        codes = [gptq(weight, h, grid, 3, act_order=on) for on in (True, False)]
        errors = [output_error(weight, decode(c, grid), h) for c in codes]
        ratios.append(errors[0] / errors[1])
    assert sorted(ratios)[4] < 1, ratios


def naive_current_groups(
    weight: Tensor, hessian: Tensor, bits: int, group: int, damp: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Optimal brain quantization; asymmetric grid of a group from its weights when reached."""
    w = weight.double().clone()
    rows, size = w.shape
    inverse = torch.linalg.inv(
        hessian.double() + damp * torch.diagonal(hessian).mean() * torch.eye(size).double()
    )
    codes = torch.zeros_like(w)
    steps = torch.zeros(rows, size // group).double()
    zeros = torch.zeros_like(steps)
    for j in range(size):
        g = j // group
        for i in range(rows):
            if j % group == 0:
                values = [float(v) for v in w[i, j : j + group]] + [0.0]
                step = (max(values) - min(values)) / (2**bits - 1)
                steps[i, g] = float(torch.tensor(step).half())
                zeros[i, g] = round(-min(values) / step)
            code = round(float(w[i, j] / steps[i, g])) + float(zeros[i, g])
            codes[i, j] = min(max(code, 0.0), 2**bits - 1.0)
        error = (w[:, j] - (codes[:, j] - zeros[:, g]) * steps[:, g]) / inverse[0, 0]
        w[:, j + 1 :] -= error[:, None] * inverse[0, 1:]
        inverse = (inverse - inverse[:, :1] @ inverse[:1] / inverse[0, 0])[1:, 1:]
    return codes.float(), steps.float(), zeros.float()


@pytest.mark.parametrize("block", [4, 8, 128])
def test_grids_of_groups_follow_the_updated_weights(block: int) -> None:
    hessian = Hessian(24)
    hessian.add(correlated(300, 24, 6))
    h = hessian.matrix()
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(6))
    codes, grid = gptq_current_groups(weight, h, 4, group=8, symmetric=False, block=block)
    expected, steps, zeros = naive_current_groups(weight, h, 4, 8, 0.01)
    assert torch.equal(codes, expected)
    assert torch.equal(grid.scale, steps)
    assert grid.zero is not None
    assert torch.equal(grid.zero, zeros)
    fixed = weight_grid(weight, 4, symmetric=False, group=8)
    assert not torch.allclose(grid.scale[:, 1:], fixed.scale[:, 1:], rtol=1e-2)


@pytest.mark.parametrize("symmetric", [True, False])
def test_current_groups_round_to_nearest_for_a_diagonal_hessian(symmetric: bool) -> None:
    weight = torch.randn(8, 40, generator=torch.Generator().manual_seed(2)).half().float()
    hessian = torch.diag(torch.rand(40, dtype=torch.float64) + 0.1)
    codes, grid = gptq_current_groups(weight, hessian, 4, group=8, symmetric=symmetric)
    fixed = weight_grid(weight, 4, symmetric=symmetric, group=8)
    torch.testing.assert_close(grid.scale, fixed.scale, rtol=1e-3, atol=0)
    assert torch.equal(codes, encode(weight, expand(grid, 8), 4))


def test_a_group_that_does_not_divide_the_width_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        gptq_current_groups(torch.randn(2, 10), torch.eye(10).double(), 4, group=4)


@pytest.mark.parametrize("group", [0, 8])
def test_a_rounded_linear_beats_rounding_to_nearest_behind_its_transform(group: int) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(32, 16)
    turn = Hadamard.random(32, torch.Generator().manual_seed(0))
    x = correlated(400, 32, 9)
    hessian = Hessian(32)
    hessian.add(turn(x))
    spec, keep = WeightSpec(bits=3, group=group), ActivationSpec(bits=16)
    made = gptq_linear(linear, spec, keep, hessian.matrix(), transforms=[turn])
    with torch.no_grad():
        mapped = turn.weight(linear.weight)
        error = (made(x) - linear(x)).square().sum() / (x @ linear.weight.T).square().sum()
    grid = weight_grid(mapped, 3, group=group)
    wide = expand(grid, group)
    nearest = output_error(mapped, decode(encode(mapped, wide, 3), wide), hessian.matrix())
    assert float(error) < nearest
    said = output_error(mapped, made.dequantized(), hessian.matrix())
    assert said == pytest.approx(float(error), rel=1e-3)
