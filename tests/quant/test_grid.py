"""Grids against loops written from the definitions, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.quant.layers.grid import (
    Affine,
    affine,
    code_range,
    decode,
    encode,
    expand,
    fake_quantize,
    grouped,
    storable,
    weight_grid,
)


def naive_symmetric(row: list[float], bits: int) -> list[float]:
    """S2Q-VDiT eq. 1, one number at a time."""
    step = max(max(abs(v) for v in row) / (2 ** (bits - 1) - 1), 1e-8)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return [min(max(round(v / step), low), high) * step for v in row]


def naive_asymmetric(row: list[float], bits: int) -> list[float]:
    """Step (max - min) / (2^b - 1), zero point round(-min / step), range with 0."""
    low, high = min(*row, 0.0), max(*row, 0.0)
    step = max((high - low) / (2**bits - 1), 1e-8)
    zero = min(max(round(-low / step), 0), 2**bits - 1)
    codes = [min(max(round(v / step) + zero, 0), 2**bits - 1) for v in row]
    return [(c - zero) * step for c in codes]


rows = st.lists(
    st.floats(-1e3, 1e3, allow_nan=False, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3),
    min_size=2,
    max_size=24,
)


@settings(deadline=None)
@given(row=rows, bits=st.integers(2, 8), symmetric=st.booleans())
def test_rounding_equals_the_definition_number_by_number(
    row: list[float], bits: int, symmetric: bool
) -> None:
    x = torch.tensor([row], dtype=torch.float64)
    grid = weight_grid(x, bits, symmetric=symmetric)
    expected = (naive_symmetric if symmetric else naive_asymmetric)(row, bits)
    got = fake_quantize(x, grid, bits)[0].tolist()
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(row=rows, bits=st.integers(2, 8), symmetric=st.booleans())
def test_codes_fit_the_width_and_survive_a_second_rounding(
    row: list[float], bits: int, symmetric: bool
) -> None:
    x = torch.tensor([row])
    grid = weight_grid(x, bits, symmetric=symmetric)
    codes = encode(x, grid, bits)
    low, high = code_range(bits, symmetric)
    assert high - low + 1 == 2**bits
    assert codes.min() >= low
    assert codes.max() <= high
    assert torch.equal(encode(decode(codes, grid), grid, bits), codes)


def test_groups_have_their_own_steps() -> None:
    weight = torch.cat([torch.full((1, 4), 0.1), torch.full((1, 4), 10.0)], 1)
    grid = weight_grid(weight, 4, group=4)
    assert grid.scale.shape == (1, 2)
    assert torch.allclose(fake_quantize(weight, expand(grid, 4), 4), weight)
    assert not torch.allclose(fake_quantize(weight, weight_grid(weight, 4), 4), weight)


def test_a_width_that_is_no_multiple_of_the_group_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        grouped(torch.zeros(2, 10), 4)


def test_a_row_of_zeros_stays_zero() -> None:
    x = torch.zeros(1, 8)
    for symmetric in (True, False):
        assert torch.equal(fake_quantize(x, weight_grid(x, 4, symmetric=symmetric), 4), x)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_pass_inside_the_range_and_follow_lsq_for_the_step(symmetric: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    base = affine(torch.tensor(-1.0).double(), torch.tensor(1.2).double(), 3, symmetric=symmetric)
    scale = base.scale.clone().requires_grad_(True)
    upstream = torch.randn(5, 7, dtype=torch.float64)
    (fake_quantize(x, Affine(scale, base.zero), 3) * upstream).sum().backward()
    zero = 0.0 if base.zero is None else float(base.zero)
    low, high = code_range(3, symmetric)
    d_scale = 0.0
    for i in range(5):
        for j in range(7):
            ratio = float(x.detach()[i, j] / scale.detach())
            code = min(max(round(ratio) + zero, low), high) - zero
            inside = low <= round(ratio) + zero <= high
            d_scale += float(upstream[i, j]) * ((code - ratio) if inside else code)
            assert float(x.grad[i, j]) == pytest.approx(float(upstream[i, j]) if inside else 0.0)
    assert float(scale.grad) == pytest.approx(d_scale)


def test_steps_are_stored_in_half_precision_unless_they_are_subnormal_there() -> None:
    fine = torch.tensor([0.01, 0.3])
    assert torch.equal(storable(fine), fine.half().float())
    tiny = torch.tensor([1e-7, 0.3])
    assert torch.equal(storable(tiny), tiny)
    assert math.isclose(float(storable(tiny)[0]), 1e-7, rel_tol=1e-6)
