"""Percentile ranges, and the values they are searched on."""

from __future__ import annotations

import pytest
import torch

from harness.quant.calibration.statistics import VALUES_KEPT, _stride
from harness.quant.layers.grid import affine, fake_quantize
from harness.quant.rounding.clip import percentile_grid, search_output_clip


@pytest.mark.parametrize("p", [0.9, 0.999, 1.0])
def test_the_range_is_that_of_torchs_quantiles(p: float) -> None:
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    expected = affine(
        x.quantile(1 - p, dim=1, keepdim=True), x.quantile(p, dim=1, keepdim=True), 4,
        symmetric=False,
    )  # fmt: skip
    found = percentile_grid(x, 4, (p,))
    torch.testing.assert_close(found.scale, expected.scale)
    assert found.zero is not None
    assert expected.zero is not None
    assert torch.equal(found.zero, expected.zero)


def test_a_short_row_with_an_outlier_is_clipped_and_each_row_takes_its_best() -> None:
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    x[0, 7] = 9.0
    candidates = (0.99, 0.999, 0.99999)
    found = percentile_grid(x, 4, candidates)
    assert float(found.scale[0]) < float((x[0].max() - x[0].min()) / 15)
    error = (fake_quantize(x, found, 4) - x).square().sum(1)
    for p in candidates:
        one = percentile_grid(x, 4, (p,))
        assert bool((error <= (fake_quantize(x, one, 4) - x).square().sum(1) + 1e-6).all())


@pytest.mark.parametrize("width", [256, 1152, 1920, 3072])
def test_thinned_values_come_from_every_channel(width: int) -> None:
    count = width * 16 * 80
    stride = _stride(count, width)
    assert {i % width for i in range(0, count, stride)} == set(range(width))
    assert count / stride > VALUES_KEPT / 2


@pytest.mark.parametrize("group", [0, 4])
def test_the_output_clip_is_the_best_of_all_shares_by_the_outputs_of_the_group(group: int) -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(40, 8, generator=draw) @ torch.randn(8, 8, generator=draw)
    weight = torch.randn(5, 8, generator=draw) ** 3
    shrinks = (1.0, 0.8, 0.6)
    hessian = 2 * x.double().T @ x.double() / 40
    found = search_output_clip(weight, hessian, 3, shrinks, symmetric=False, group=group)
    size = group or 8
    for i in range(5):
        for g in range(8 // size):
            row = weight[i, g * size : (g + 1) * size].double()
            own = x[:, g * size : (g + 1) * size].double()
            errors, grids = [], []
            for shrink in shrinks:
                limit = shrink * float(row.abs().max())
                low = min(max(float(row.min()), -limit), 0.0)
                high = max(min(float(row.max()), limit), 0.0)
                step = float(torch.tensor((high - low) / 7).half())
                zero = round(-low / ((high - low) / 7))
                codes = ((row / step).round() + zero).clamp(0, 7)
                errors.append(float((own @ ((codes - zero) * step - row)).square().sum()))
                grids.append((step, float(zero)))
            best = grids[errors.index(min(errors))]
            assert found.zero is not None
            assert float(found.scale[i, g]) == pytest.approx(best[0], rel=1e-6)
            assert float(found.zero[i, g]) == best[1]


def test_an_output_clip_without_shares_is_refused() -> None:
    with pytest.raises(ValueError, match="no share"):
        search_output_clip(torch.ones(1, 2), torch.eye(2).double(), 4, (), symmetric=True)
