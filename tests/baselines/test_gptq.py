"""The GPTQ baseline against rounding to nearest on the inputs of a whole model."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import pytest
import torch

from baselines.gptq import GPTQ
from harness.errors import UsageError
from harness.method import resolve_options
from harness.models.families.base import linear_at
from harness.quant.layers.grid import decode, encode, expand, weight_grid
from harness.quant.layers.linear import QuantLinear
from tests.tiny_bench import QUICK, linear_inputs

if TYPE_CHECKING:
    from harness.testing.conformance import Bench


def nearest_errors(bench: Bench, bits: int) -> dict[str, float]:
    """Relative output error of rounding to nearest, by linear."""
    errors = {}
    for name, x in linear_inputs(bench).items():
        weight = linear_at(bench.pipeline.transformer, name).weight.detach()
        grid = weight_grid(weight, bits)
        rounded = decode(encode(weight, grid, bits), grid)
        exact = x.double() @ weight.double().T
        wrong = x.double() @ rounded.double().T - exact
        errors[name] = float(wrong.square().sum() / exact.square().sum())
    return errors


@pytest.mark.parametrize("options", [{}, {"act_order": True}, {"group": 16}])
def test_the_median_layer_error_is_below_that_of_rounding_to_nearest(
    bench: Bench, options: dict[str, int]
) -> None:
    tokens = {**QUICK, "inputs": "fp", **options}
    name = "-".join(options) or "plain"
    _, _, report = bench.quantize(GPTQ(), tokens, "w4a4", f"median-{name}")
    nearest = nearest_errors(bench, 4)
    ours = {layer.name: layer.error for layer in report.layers}
    assert set(ours) == set(nearest)
    assert all(error is not None and error > 0 for error in ours.values())
    assert median(ours[n] or 1.0 for n in nearest) < 0.8 * median(nearest.values())


def test_the_error_it_reports_is_that_of_the_layer_it_leaves(bench: Bench) -> None:
    made, _, report = bench.quantize(GPTQ(), {**QUICK, "inputs": "fp"}, "w4a4", "reported")
    said = {layer.name: layer.error for layer in report.layers}
    for name, x in linear_inputs(bench).items():
        layer = made.get_submodule(name)
        assert isinstance(layer, QuantLinear)
        weight = linear_at(bench.pipeline.transformer, name).weight.detach()
        wrong = x @ (layer.dequantized() - weight).T
        error = float(wrong.square().sum() / (x @ weight.T).square().sum())
        assert said[name] == pytest.approx(error, rel=1e-2)


def test_later_blocks_are_fitted_to_what_the_quantized_ones_before_deliver(bench: Bench) -> None:
    made = [
        bench.quantize(GPTQ(), {**QUICK, "inputs": inputs}, "w4a4", f"inputs-{inputs}")[0]
        for inputs in ("quantized", "fp")
    ]
    layers = [
        [m.get_submodule(f"transformer_blocks.{i}.ff.net.0.proj") for m in made] for i in (0, 1)
    ]
    codes = [[layer.codes for layer in pair if isinstance(layer, QuantLinear)] for pair in layers]
    assert torch.equal(*codes[0])
    assert not torch.equal(*codes[1])


def test_the_paper_s_grid_has_a_zero_point_and_spans_the_row(bench: Bench) -> None:
    made, _, _ = bench.quantize(GPTQ(), {**QUICK, "symmetric": False}, "w4a4", "asymmetric")
    name = "transformer_blocks.0.ff.net.0.proj"
    layer, weight = made.get_submodule(name), linear_at(bench.pipeline.transformer, name).weight
    assert isinstance(layer, QuantLinear)
    assert layer.scale is not None and layer.zero is not None
    spans = weight.amax(1).clamp_min(0) - weight.amin(1).clamp_max(0)
    torch.testing.assert_close(layer.scale[:, 0].float(), spans / 15, rtol=1e-3, atol=0)


def test_act_order_with_groups_keeps_the_grids_of_the_untouched_weights(bench: Bench) -> None:
    options = {**QUICK, "group": 8, "act_order": True}
    made, _, _ = bench.quantize(GPTQ(), options, "w4a4", "static-groups")
    name = "transformer_blocks.0.attn1.to_k"
    layer, weight = made.get_submodule(name), linear_at(bench.pipeline.transformer, name).weight
    assert isinstance(layer, QuantLinear)
    assert layer.scale is not None
    fixed = weight_grid(weight.detach(), 4, group=8)
    torch.testing.assert_close(layer.scale.float(), fixed.scale, rtol=1e-3, atol=0)
    nearest = encode(weight.detach(), expand(fixed, 8), 4)
    assert not torch.equal(layer.codes.float(), nearest)


@pytest.mark.parametrize("wrong", [{"percdamp": 0.0}, {"inputs": "half"}, {"samples": 0}])
def test_options_that_cannot_be_meant_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        resolve_options(GPTQ(), wrong)
