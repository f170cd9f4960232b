"""Smoothing: the scale against a loop, the function of the block unchanged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.models.families.base import linear_at
from harness.quant.calibration.capture import run_block
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import WeightSpec, quantize_linear
from harness.quant.rounding.smoothing import apply_scales_, smoothing_scale, weight_absmax
from tests.quant.test_statistics import FAMILY, block_and_inputs


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0, 1), channels=st.integers(1, 9))
def test_the_scale_is_the_ratio_of_powers_of_the_maxima(
    seed: int, alpha: float, channels: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(7, channels, generator=draw) * 10 ** torch.randn(channels, generator=draw)
    w = torch.randn(5, channels, generator=draw)
    got = smoothing_scale(x.abs().amax(0), w.abs().amax(0), alpha).tolist()
    for j in range(channels):
        largest_x = max(abs(float(x[i, j])) for i in range(7))
        largest_w = max(abs(float(w[i, j])) for i in range(5))
        assert got[j] == pytest.approx(largest_x**alpha / largest_w ** (1 - alpha), rel=1e-5)


def test_a_channel_without_activation_or_weight_keeps_its_size() -> None:
    scale = smoothing_scale(torch.tensor([0.0, 4.0, 4.0]), torch.tensor([1.0, 0.0, 1.0]), 0.5)
    assert scale.tolist() == [1.0, 1.0, 2.0]


def test_smoothing_leaves_the_function_of_the_block_unchanged() -> None:
    block, inputs = block_and_inputs()
    before = [run_block(block, FAMILY, given_) for given_ in inputs]
    groups = [g for g in FAMILY.groups(block) if not g.modulation]
    draw = torch.Generator().manual_seed(1)
    widths = {g.name: linear_at(block, g.linears[0]).in_features for g in groups}
    scales = {n: torch.rand(width, generator=draw) * 9 + 0.1 for n, width in widths.items()}
    online = apply_scales_(block, groups, scales)
    assert [bool(online[g.name]) for g in groups] == [g.fold is None for g in groups]
    keep = WeightSpec(bits=16), ActivationSpec(bits=16)
    for group in groups:
        for name in group.linears:
            layer = quantize_linear(linear_at(block, name), *keep, transforms=online[group.name])
            replace_module_(block, name, layer)
    for given_, expected in zip(inputs, before, strict=True):
        after = run_block(block, FAMILY, given_)
        for name, value in expected.items():
            torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-4)


def test_a_group_without_a_scale_is_left_alone() -> None:
    block, _ = block_and_inputs()
    before = {name: value.clone() for name, value in block.named_parameters()}
    groups = FAMILY.groups(block)
    online = apply_scales_(block, groups, {})
    assert online == {group.name: [] for group in groups}
    assert all(torch.equal(before[name], value) for name, value in block.named_parameters())


def test_the_maximum_of_a_weight_goes_over_all_readers() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 1)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, -5.0], [2.0, 0.0]]))
        second.weight.copy_(torch.tensor([[-3.0, 1.0]]))
    assert weight_absmax([first, second]).tolist() == [3.0, 5.0]
