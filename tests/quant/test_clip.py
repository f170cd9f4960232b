"""Percentile ranges, and the values they are searched on."""

from __future__ import annotations

import pytest
import torch

from harness.quant.clip import percentile_grid
from harness.quant.grid import affine, fake_quantize
from harness.quant.statistics import VALUES_KEPT, _stride


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
