"""AWQ's scale, its search and its clipping against loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from baselines.awq import ALPHAS, AWQ, awq_scale, best_alpha, round_clipped, scaled_error
from harness.bits import BitSpec
from harness.quant.layers.linear import QuantLinear, WeightSpec
from harness.testing.conformance import Bench
from tests.tiny_bench import QUICK


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.sampled_from(ALPHAS), channels=st.integers(1, 9))
def test_the_scale_is_normalised_by_its_extremes(seed: int, alpha: float, channels: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(7, channels, generator=draw) * 10 ** torch.randn(channels, generator=draw)
    raw = []
    for j in range(channels):
        mean = sum(abs(float(x[i, j])) for i in range(7)) / 7
        raw.append(max(mean**alpha, 1e-4))
    norm = (max(raw) * min(raw)) ** 0.5
    got = awq_scale(x.abs().mean(0), alpha)
    assert got.tolist() == pytest.approx([r / norm for r in raw], rel=1e-4)
    assert float(got.max() * got.min()) == pytest.approx(1, rel=1e-4)


def test_a_channel_that_is_never_active_has_the_smallest_scale() -> None:
    scale = awq_scale(torch.tensor([0.0, 1.0]), 0.5)
    assert scale.tolist() == pytest.approx([1e-2, 1e2])


def naive_groups(row: list[float], bits: int, group: int) -> list[float]:
    """Asymmetric round to nearest of each group; the step in half precision."""
    out: list[float] = []
    for start in range(0, len(row), group):
        part = row[start : start + group]
        low, high = min(*part, 0.0), max(*part, 0.0)
        step = (high - low) / (2**bits - 1)
        zero = round(-low / step)
        stored = float(torch.tensor(step).half())
        out += [(min(max(round(v / stored) + zero, 0), 2**bits - 1) - zero) * stored for v in part]
    return out


def naive_error(x: Tensor, w: Tensor, scale: Tensor, bits: int, group: int) -> float:
    """||(X / s) Q(W s)^T - X W^T||^2 in loops."""
    total = 0.0
    for o in range(w.shape[0]):
        s = [float(v) for v in scale]
        rounded = naive_groups(
            [float(v) * f for v, f in zip(w[o], s, strict=True)], bits, group
        )  # fmt: skip
        for i in range(x.shape[0]):
            exact = sum(float(a) * float(b) for a, b in zip(x[i], w[o], strict=True))
            got = sum(float(a) / f * q for a, f, q in zip(x[i], s, rounded, strict=True))
            total += (got - exact) ** 2
    return total


def salient(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with large channels, a weight, and the second moment of the inputs."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 8, generator=draw) * torch.tensor([1.0, 1, 9, 1, 1, 25, 1, 3])
    return x, torch.randn(4, 8, generator=draw), 2 * x.double().T @ x.double() / 20


@pytest.mark.parametrize("seed", range(3))
def test_the_chosen_exponent_has_the_smallest_output_error(seed: int) -> None:
    x, weight, hessian = salient(seed)
    spec = WeightSpec(bits=3, symmetric=False, group=4)
    mean = x.abs().mean(0)
    naive = [naive_error(x, weight, awq_scale(mean, alpha), 3, 4) for alpha in ALPHAS]
    got = [scaled_error([(hessian, weight)], awq_scale(mean, alpha), spec) for alpha in ALPHAS]
    assert [g * 20 / 2 for g in got] == pytest.approx(naive, rel=1e-3)
    chosen = best_alpha(mean, [(hessian, weight)], spec)
    assert naive[ALPHAS.index(chosen)] == pytest.approx(min(naive), rel=1e-3)
    assert min(naive) < naive[0]  # exponent 0 is no scale at all


def test_clipped_ranges_lower_the_output_error_of_groups() -> None:
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(200, 32, generator=draw)
    linear = nn.Linear(32, 16).requires_grad_(False)
    linear.weight.copy_(torch.randn(16, 32, generator=draw) ** 3)
    hessian = 2 * x.double().T @ x.double() / 200
    spec = WeightSpec(bits=3, symmetric=False, group=16)
    exact = linear(x)
    errors = [
        float((round_clipped(linear, spec, h, [])(x) - exact).square().sum())
        for h in (hessian, None)
    ]
    assert errors[0] < 0.97 * errors[1]


def test_it_refuses_to_quantize_activations() -> None:
    for bits in ("w4a4", "w4a8", "w16a8"):
        answer = AWQ().supports("cogvideox", BitSpec.parse(bits))
        assert answer is not None
        assert "weights only" in answer.reason
    for bits in ("w3a16", "w4a16", "w8a16", "w16a16"):
        assert AWQ().supports("cogvideox", BitSpec.parse(bits)) is None


def layers(bench: Bench, options: dict[str, object], name: str) -> dict[str, QuantLinear]:
    made, _, report = bench.quantize(AWQ(), {**QUICK, **options}, "w4a16", name)
    assert any("32 at width 32" in note for note in report.notes)
    return {
        n.split(".", 2)[2]: m
        for n, m in made.named_modules()
        if isinstance(m, QuantLinear) and n.startswith("transformer_blocks.0.")
    }


def test_queries_and_keys_are_not_clipped(bench: Bench) -> None:
    clipped, plain = layers(bench, {}, "clip"), layers(bench, {"clip": False}, "no-clip")
    same = {
        name: torch.equal(a.scale, plain[name].scale)
        for name, a in clipped.items()
        if a.scale is not None and plain[name].scale is not None
    }
    assert same["attn1.to_q"] and same["attn1.to_k"]
    assert not any(same[n] for n in ("attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"))
    assert clipped["attn1.to_q"].weight_spec == WeightSpec(bits=4, symmetric=False, group=32)


def test_scales_lower_the_error_of_weights_that_read_large_channels(bench: Bench) -> None:
    import copy

    from harness.models.families import family_by_name
    from harness.models.outliers import plant_outliers_

    pipeline = copy.copy(bench.pipeline)
    pipeline.register_modules(transformer=copy.deepcopy(bench.pipeline.transformer))
    plant_outliers_(pipeline.transformer, family_by_name("cogvideox"))
    hard = Bench(pipeline=pipeline, family="cogvideox", pool=bench.pool, folder=bench.folder)
    reports = [
        hard.quantize(AWQ(), {**QUICK, "scale": on}, "w3a16", f"scale-{on}")[2]
        for on in (True, False)
    ]
    errors = [
        sum(layer.error or 0.0 for layer in r.layers if layer.name.endswith("to_k"))
        for r in reports
    ]
    assert errors[0] < errors[1]
