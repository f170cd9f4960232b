"""Bounded-init grid refinement against loops written from the formulas, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.quant.layers.grid import Affine, decode, encode, expand, weight_grid
from harness.quant.rounding.clip import search_clip
from methods.dvdquant import bgr
from methods.dvdquant.bgr import (
    best_scale,
    best_zero,
    bounded_grid,
    bounded_grid_refinement,
    grid_error,
    refined,
)

FACTORS = [1 - 0.01 * i for i in range(81)]


def rounded(value: float) -> int:
    """Half to even, as both Python and torch do."""
    return round(value)


def clamped(value: int, bits: int) -> int:
    return min(max(value, 0), 2**bits - 1)


def naive_grid(row: list[float], low: float, high: float, bits: int) -> tuple[float, int]:
    lowest, highest = min(min(row) * low, 0.0), max(max(row) * high, 0.0)
    scale = max((highest - lowest) / (2**bits - 1), 1e-8)
    return scale, clamped(rounded(-lowest / scale), bits)


def naive_codes(row: list[float], scale: float, zero: int, bits: int) -> list[int]:
    return [clamped(rounded(w / scale) + zero, bits) for w in row]


def naive_error(row: list[float], scale: float, zero: int, bits: int) -> float:
    codes = naive_codes(row, scale, zero, bits)
    return sum((w - scale * (q - zero)) ** 2 for w, q in zip(row, codes, strict=True))


def naive_bounds(row: list[float], bits: int) -> tuple[float, float]:
    """Both bounds together, then the lower alone, then the upper alone."""
    best, least = (1.0, 1.0), math.inf
    for sweep in ("both", "lower", "upper"):
        low, high = best
        for f in FACTORS:
            pair = {"both": (f, f), "lower": (f, high), "upper": (low, f)}[sweep]
            error = naive_error(row, *naive_grid(row, *pair, bits), bits)
            if error < least:
                best, least = pair, error
    return best


def naive_refined(
    row: list[float], scale: float, zero: int, bits: int, iterations: int, tolerance: float
) -> tuple[float, int]:
    error = naive_error(row, scale, zero, bits)
    for _ in range(iterations):
        codes = naive_codes(row, scale, zero, bits)
        square = sum((q - zero) ** 2 for q in codes)
        product = sum((q - zero) * w for q, w in zip(codes, row, strict=True))
        step = product / square if product > 0 else scale
        mean = sum(q - w / step for q, w in zip(codes, row, strict=True)) / len(row)
        offset = clamped(rounded(mean), bits)
        fallen = naive_error(row, step, offset, bits)
        if fallen >= error:
            break
        done = error - fallen <= tolerance * error
        scale, zero, error = step, offset, fallen
        if done:
            break
    return scale, zero


def draw_rows(seed: int, rows: int, values: int) -> torch.Tensor:
    """Gaussian rows; the first with outliers on one side, the second shifted off zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, values, generator=generator, dtype=torch.float64)
    weight[0, :2] = weight[0, :2].abs() * 6
    weight[1] += 2.5
    return weight


def minmax_error(weight: torch.Tensor, bits: int) -> torch.Tensor:
    return grid_error(weight, weight_grid(weight, bits, symmetric=False), bits)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 5), values=st.integers(8, 24))
def test_search_and_descent_are_those_of_the_loops(seed: int, bits: int, values: int) -> None:
    weight = draw_rows(seed, 3, values)
    start = bounded_grid(weight, bits)
    found = bounded_grid_refinement(weight, bits)
    assert start.zero is not None
    assert found.zero is not None
    for i, row in enumerate(weight.tolist()):
        scale, zero = naive_grid(row, *naive_bounds(row, bits), bits)
        assert (float(start.scale[i]), int(start.zero[i])) == (pytest.approx(scale), zero)
        scale, zero = naive_refined(row, scale, zero, bits, bgr.ITERATIONS, bgr.TOLERANCE)
        assert (float(found.scale[i]), int(found.zero[i])) == (pytest.approx(scale), zero)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000), bits=st.integers(2, 8), iterations=st.integers(0, 6),
    outlier=st.floats(0, 100),
)  # fmt: skip
def test_no_row_is_ever_worse_than_min_max_or_than_one_step_less(
    seed: int, bits: int, iterations: int, outlier: float
) -> None:
    weight = draw_rows(seed, 4, 32)
    weight[2, 5] = outlier
    before = minmax_error(weight, bits)
    for count in (iterations, iterations + 1):
        grid = bounded_grid_refinement(weight, bits, iterations=count, tolerance=0)
        error = grid_error(weight, grid, bits)
        assert bool((error <= before).all())
        before = error


def test_the_descent_ends_in_a_fixed_point_of_all_three_closed_forms() -> None:
    weight = draw_rows(7, 6, 200)
    start = weight_grid(weight, 3, symmetric=False)
    grid = refined(weight, start, 3, iterations=10_000, tolerance=0)
    assert grid.zero is not None
    codes = encode(weight, grid, 3)
    torch.testing.assert_close(best_scale(weight, codes, grid.zero, grid.scale), grid.scale)
    assert torch.equal(best_zero(weight, codes, grid.scale, 3), grid.zero)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 4), nudge=st.floats(0.9, 1.1))
def test_each_closed_form_is_the_best_choice_for_the_two_others(
    seed: int, bits: int, nudge: float
) -> None:
    weight = draw_rows(seed, 3, 20)
    grid = weight_grid(weight, bits, symmetric=False)
    assert grid.zero is not None
    codes = encode(weight, grid, bits)

    def error(scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        return (weight - decode(codes, Affine(scale, zero))).square().sum(-1, keepdim=True)

    scale = best_scale(weight, codes, grid.zero, grid.scale)
    assert bool((error(scale, grid.zero) <= error(scale * nudge, grid.zero) + 1e-12).all())
    zero = best_zero(weight, codes, scale, bits)
    for other in range(2**bits):
        rival = torch.full_like(zero, other)
        assert bool((error(scale, zero) <= error(scale, rival) + 1e-12).all())


def test_a_row_with_outliers_on_one_side_is_cut_on_that_side_only() -> None:
    weight = torch.randn(1, 2000, generator=torch.Generator().manual_seed(2)).clamp(-2, 2)
    weight[0, 0] = 8.0
    grid = bounded_grid(weight, 4)
    assert grid.zero is not None
    low = -float(grid.zero * grid.scale)
    high = float((15 - grid.zero) * grid.scale)
    assert high < 5
    assert low < -1.5
    together = search_clip(weight, 4, symmetric=False)
    one_factor = weight_grid(weight, 4, symmetric=False, clip=together)
    assert float(grid_error(weight, grid, 4)) < 0.95 * float(grid_error(weight, one_factor, 4))


def test_three_line_searches_come_close_to_trying_every_pair_of_bounds() -> None:
    weight = draw_rows(9, 6, 64)
    every = [
        grid_error(weight, weight_grid(weight, 4, symmetric=False, clip=high, clip_low=low), 4)
        for low in FACTORS[::4]
        for high in FACTORS[::4]
    ]
    least = torch.stack(every).amin(0)
    assert float(grid_error(weight, bounded_grid(weight, 4), 4).sum()) < 1.05 * float(least.sum())


def test_gaussian_rows_lose_a_third_of_the_min_max_error_and_outliers_more() -> None:
    generator = torch.Generator().manual_seed(3)
    gaussian = torch.randn(16, 3072, generator=generator)
    spiked = gaussian * torch.where(torch.rand(16, 3072, generator=generator) < 0.003, 8.0, 1.0)
    ratios = []
    for weight in (gaussian, spiked):
        grid = bounded_grid_refinement(weight, 4)
        ratios.append(float(grid_error(weight, grid_rows(grid), 4).sum()))
        ratios[-1] /= float(minmax_error(weight, 4).sum())
    assert 0.55 < ratios[0] < 0.70
    assert ratios[1] < 0.45


def grid_rows(grid: Affine) -> Affine:
    """One group a row: the grid broadcasts as it is."""
    assert grid.scale.shape[1] == 1
    return grid


def test_groups_are_rows_of_their_own_and_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = draw_rows(5, 4, 32)
    grid = bounded_grid_refinement(weight, 3, group=8)
    assert grid.scale.shape == (4, 4)
    for g in range(4):
        alone = bounded_grid_refinement(weight[:, 8 * g : 8 * g + 8], 3)
        torch.testing.assert_close(grid.scale[:, g : g + 1], alone.scale)
    monkeypatch.setattr(bgr, "CHUNK_VALUES", 24)
    again = bounded_grid_refinement(weight, 3, group=8)
    torch.testing.assert_close(again.scale, grid.scale)
    assert expand(again, 8).scale.shape == weight.shape


def test_rows_of_zeros_and_constant_rows_stay_finite() -> None:
    weight = torch.zeros(3, 8)
    weight[1], weight[2] = 0.7, -0.3
    grid = bounded_grid_refinement(weight, 4)
    restored = decode(encode(weight, grid, 4), grid)
    torch.testing.assert_close(restored, weight)


def test_a_grid_without_zero_point_is_refused() -> None:
    weight = torch.ones(1, 4)
    with pytest.raises(ValueError, match="symmetric"):
        refined(weight, weight_grid(weight, 4), 4, iterations=1, tolerance=0)
