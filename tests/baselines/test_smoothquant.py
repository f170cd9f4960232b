"""SmoothQuant's search against loops in float64, and what it leaves in the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from baselines.smoothquant import ALPHAS, SmoothQuant, best_alpha, group_scale, smoothed_error
from harness.bits import BitSpec
from harness.quant.layers.linear import QuantLinear
from tests.tiny_bench import QUICK

if TYPE_CHECKING:
    from harness.testing.conformance import Bench


def naive_round(row: list[float], bits: int, half: bool) -> list[float]:
    """Symmetric round to nearest of one row; weights store their step in half precision."""
    step = max(abs(v) for v in row) / (2 ** (bits - 1) - 1)
    step = float(torch.tensor(step).half()) if half else step
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return [min(max(round(v / step), low), high) * step for v in row]


def naive_error(x: Tensor, w: Tensor, alpha: float, bits: BitSpec) -> float:
    """||Q(X / s) Q(W s)^T - X W^T||^2 in loops."""
    tokens, outputs, width = x.shape[0], w.shape[0], x.shape[1]
    scale = []
    for j in range(width):
        largest_x = max(abs(float(x[i, j])) for i in range(tokens))
        largest_w = max(abs(float(w[i, j])) for i in range(outputs))
        scale.append(largest_x**alpha / largest_w ** (1 - alpha))
    xq = [naive_round([float(x[i, j]) / scale[j] for j in range(width)], bits.a, False)
          for i in range(tokens)]  # fmt: skip
    wq = [naive_round([float(w[o, j]) * scale[j] for j in range(width)], bits.w, True)
          for o in range(outputs)]  # fmt: skip
    total = 0.0
    for i in range(tokens):
        for o in range(outputs):
            exact = sum(float(x[i, j]) * float(w[o, j]) for j in range(width))
            total += (sum(a * b for a, b in zip(xq[i], wq[o], strict=True)) - exact) ** 2
    return total


def outliers(seed: int) -> tuple[Tensor, list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 6, generator=draw) * torch.tensor([1.0, 1, 30, 1, 1, 8])
    return x, [torch.randn(4, 6, generator=draw), torch.randn(3, 6, generator=draw) * 2]


@pytest.mark.parametrize("seed", range(4))
def test_the_chosen_alpha_has_the_smallest_error_of_all(seed: int) -> None:
    x, weights = outliers(seed)
    bits = BitSpec.parse("w4a4")
    peak = x.abs().amax(0)
    # one scale for all readers: the largest weight of any of them
    both = torch.cat(weights)
    naive = [naive_error(x, both, alpha, bits) for alpha in ALPHAS]
    chosen = best_alpha(peak, [x], weights, bits)
    assert min(naive) == pytest.approx(naive[ALPHAS.index(chosen)], rel=1e-4)
    assert min(naive) < 0.9 * max(naive)


def test_the_error_of_a_scale_is_that_of_the_loops() -> None:
    x, weights = outliers(9)
    for bits in (BitSpec.parse("w4a6"), BitSpec.parse("w8a4")):
        for alpha in (0.25, 0.75):
            scale = group_scale(x.abs().amax(0), weights, alpha)
            got = smoothed_error([x], weights, scale, bits)
            assert got == pytest.approx(naive_error(x, torch.cat(weights), alpha, bits), rel=1e-3)


def test_readers_of_different_tokens_are_each_judged_on_their_own() -> None:
    x, weights = outliers(2)
    other = outliers(3)[0]
    bits, scale = BitSpec.parse("w4a4"), torch.rand(6) + 0.5
    apart = smoothed_error([x], weights[:1], scale, bits)
    apart += smoothed_error([other], weights[1:], scale, bits)
    assert smoothed_error([x, other], weights, scale, bits) == pytest.approx(apart)


def transforms(bench: Bench, options: dict[str, object], name: str) -> dict[str, str]:
    made, _, _ = bench.quantize(SmoothQuant(), {**QUICK, **options}, "w4a4", name)
    return {
        linear: "+".join(str(t.label) for t in layer.transforms)
        for linear, layer in made.named_modules()
        if isinstance(layer, QuantLinear)
    }


def test_only_the_second_feed_forward_linear_keeps_its_scale_online(bench: Bench) -> None:
    found = transforms(bench, {}, "online")
    assert {n.split(".", 2)[2] for n, label in found.items() if label} == {"ff.net.2"}
    assert not any(transforms(bench, {"online": False}, "offline").values())


def test_a_fixed_alpha_is_the_alpha_everywhere(bench: Bench) -> None:
    options = {**QUICK, "search": False, "alpha": 0.7}
    _, _, fixed = bench.quantize(SmoothQuant(), options, "w4a4", "fixed")
    _, _, searched = bench.quantize(SmoothQuant(), QUICK, "w4a4", "searched")
    names = {"alpha_attn_in", "alpha_attn_out", "alpha_ff_in", "alpha_ff_out"}
    assert set(fixed.curves) == set(searched.curves) == names
    assert {a for curve in fixed.curves.values() for a in curve} == {0.7}
    assert {a for curve in searched.curves.values() for a in curve} <= set(ALPHAS)
    assert all(len(curve) == 2 for curve in searched.curves.values())
