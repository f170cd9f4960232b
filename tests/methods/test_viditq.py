"""ViDiT-Q against loops written from the paper, and on the miniature."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.bits import BitSpec
from harness.errors import HarnessError, UsageError
from harness.method import QuantContext, QuantReport
from harness.models.block_input import Sample
from harness.models.families import family
from harness.models.trajectories import CalibrationPool, record_pool
from harness.quant.layers import hadamard
from harness.quant.layers.activation import ActivationSpec, quantize_activation
from harness.quant.layers.artifact import load_artifact_, save_artifact
from harness.quant.layers.linear import WeightSpec, quantize_linear
from harness.quant.layers.policy import TimestepPolicy, policy_of
from harness.quant.layers.switch import SwitchedLinear
from harness.quant.layers.transform import ChannelScale, Hadamard
from harness.testing.conformance import PROMPTS, TINY_GEN, make_bench, tiny_pipeline
from methods.viditq import mixed
from methods.viditq.method import ViDiTQ, ViDiTQOptions, static_scale

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAMILY = family("cogvideox")


def naive_row(row: list[float], bits: int) -> list[float]:
    """The paper's dynamic quantizer on one token: min and max include 0."""
    high, low = max(*row, 0.0), min(*row, 0.0)
    step = max((high - low) / (2**bits - 1), 1e-8)
    zero = round(-low / step)
    return [(min(max(round(v / step) + zero, 0), 2**bits - 1) - zero) * step for v in row]


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([4, 6, 8]))
def test_every_token_of_every_batch_element_has_its_own_asymmetric_range(
    seed: int, bits: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 7, generator=draw, dtype=torch.float64)
    x = x * torch.rand(2, 3, 1, generator=draw) * 10 + torch.randn(2, 3, 1, generator=draw)
    got = quantize_activation(x, ActivationSpec(bits=bits, symmetric=False))
    for b in range(2):
        for t in range(3):
            assert got[b, t].tolist() == pytest.approx(naive_row(x[b, t].tolist(), bits), abs=1e-9)


def test_a_token_of_zeros_does_not_touch_the_steps_of_the_others() -> None:
    x = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    spec = ActivationSpec(bits=8, symmetric=False)
    alone = quantize_activation(x, spec)
    beside = quantize_activation(torch.cat([x, torch.zeros(1, 1, 16)], 1), spec)
    assert torch.equal(beside[:, :4], alone)
    assert not bool(beside[:, 4].any())


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0, 1))
def test_the_scale_is_that_of_both_releases(seed: int, alpha: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = (torch.rand(9, generator=draw) * 20 + 0.01).double()
    w = (torch.rand(9, generator=draw) + 0.01).double()
    got = static_scale(x, w, alpha).tolist()
    of_2024 = [a**alpha / b ** (1 - alpha) for a, b in zip(x.tolist(), w.tolist(), strict=True)]
    flipped = 1 - alpha
    of_2025 = [b**flipped / a ** (1 - flipped) for a, b in zip(x.tolist(), w.tolist(), strict=True)]
    assert got == pytest.approx(of_2024)
    assert got == pytest.approx([1 / m for m in of_2025])


def test_dead_channels_get_a_finite_scale() -> None:
    scale = static_scale(torch.tensor([0.0, 2.0]), torch.tensor([0.5, 0.0]), 0.11)
    assert scale.tolist() == pytest.approx([1e-3**0.11 / 0.5**0.89, 1.0])


@pytest.mark.parametrize("width", [12, 32, 36, 144])
def test_scale_then_rotation_cancels_on_the_weight_side_in_float64(width: int) -> None:
    draw = torch.Generator().manual_seed(width)
    x = torch.randn(5, width, generator=draw, dtype=torch.float64)
    w = torch.randn(4, width, generator=draw, dtype=torch.float64)
    s = static_scale(x.abs().amax(0), w.abs().amax(0), 0.11)
    turn = Hadamard.random(width, draw)
    outer, inner = hadamard.factors(width, torch.float64)
    dense = turn.signs.double()[:, None] * torch.kron(outer, inner)
    torch.testing.assert_close(dense.T @ dense, torch.eye(width, dtype=torch.float64))
    balanced, rotated = (x / s) @ dense, (w * s) @ dense
    torch.testing.assert_close(balanced @ rotated.T, x @ w.T, rtol=1e-12, atol=1e-12)
    # the modules do the same in the same order
    module = turn(ChannelScale(s)(x))
    torch.testing.assert_close(module, balanced, rtol=1e-5, atol=1e-5)
    weight = turn.weight(ChannelScale(s).weight(w))
    torch.testing.assert_close(weight, rotated, rtol=1e-5, atol=1e-5)


def test_a_weight_is_rounded_once_in_the_balanced_basis() -> None:
    draw = torch.Generator().manual_seed(0)
    linear = nn.Linear(16, 5)
    transforms = [ChannelScale(torch.rand(16, generator=draw) + 0.5), Hadamard.random(16, draw)]
    layer = quantize_linear(
        linear, WeightSpec(bits=4, symmetric=False), ActivationSpec(bits=16), transforms=transforms
    )
    exact = transforms[1].weight(transforms[0].weight(linear.weight.detach()))
    assert layer.scale is not None
    off = (layer.dequantized() - exact).abs() / layer.scale
    assert float(off.max()) < 0.5 + 0.02  # steps are stored in half precision, the range ends move


@settings(deadline=None)
@given(
    budget=st.floats(0, 100),
    error=st.lists(st.floats(0, 10), min_size=3, max_size=3),
    capacity=st.lists(st.floats(0.1, 40), min_size=3, max_size=3),
)
def test_group_budgets_follow_the_error_and_never_exceed_what_a_group_can_use(
    budget: float, error: list[float], capacity: list[float]
) -> None:
    names = ("motion", "quality", "text")
    e, c = dict(zip(names, error, strict=True)), dict(zip(names, capacity, strict=True))
    shares = mixed.group_budgets(budget, e, c)
    assert set(shares) == set(names)
    assert sum(shares.values()) == pytest.approx(min(budget, sum(capacity)), abs=1e-6)
    assert all(shares[g] <= c[g] * (1 + 1e-9) for g in names)
    open_groups = [g for g in names if shares[g] < c[g] * (1 - 1e-9) and e[g] > 1e-6]
    for a in open_groups:
        for b in open_groups:
            assert shares[a] * e[b] == pytest.approx(shares[b] * e[a], rel=1e-6, abs=1e-6)


def test_budgets_on_hand_made_numbers() -> None:
    error, capacity = {"a": 3.0, "b": 1.0}, {"a": 10.0, "b": 10.0}
    assert mixed.group_budgets(8, error, capacity) == pytest.approx({"a": 6, "b": 2})
    assert mixed.group_budgets(16, error, capacity) == pytest.approx({"a": 10, "b": 6})
    nothing = {"a": 0.0, "b": 0.0}
    assert mixed.group_budgets(8, nothing, capacity) == pytest.approx({"a": 4, "b": 4})


def candidate(layer: int, quarter: int, damage: float, cost: float = 1.0) -> mixed.Candidate:
    return mixed.Candidate(
        layer=layer, quarter=quarter, group="g", cost=cost, error=1.0, damage=damage
    )


def test_the_most_sensitive_are_raised_until_the_budget_is_used() -> None:
    pool = [candidate(0, 0, 5, 3), candidate(1, 0, 9, 2), candidate(2, 0, 4, 2), candidate(3, 0, 1)]
    taken = [c.layer for c in mixed.most_sensitive(pool, 5)]
    assert taken == [1, 0]
    assert [c.layer for c in mixed.most_sensitive(pool, 4)] == [1, 2]  # 3 no longer fits
    assert [c.layer for c in mixed.most_sensitive(pool, 0)] == []
    assert {c.layer for c in mixed.most_sensitive(pool, 8)} == {0, 1, 2, 3}


def test_equal_damage_is_raised_in_the_noisier_quarter_first() -> None:
    pool = [candidate(0, 3, 1), candidate(0, 1, 1), candidate(1, 1, 1)]
    taken = [(c.quarter, c.layer) for c in mixed.most_sensitive(pool, 2)]
    assert taken == [(1, 0), (1, 1)]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), steps=st.integers(4, 50), average=st.floats(4, 8))
def test_the_plan_keeps_to_its_average_and_prefers_damage_within_a_group(
    seed: int, steps: int, average: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    layers = [mixed.Layer(f"l{i}", ("text", "quality")[i % 2], (f"l{i}",), 100) for i in range(6)]
    error, damage = torch.rand(2, 6, 4, generator=draw).tolist()
    found = mixed.plan(layers, mixed.Measured(error, damage, 0), 4, average, steps)
    spans = [mixed.steps_in(q, steps) for q in range(4)]
    assert sum(spans) == steps
    bits = [sum(b * n for b, n in zip(row, spans, strict=True)) / steps for row in found.widths]
    assert found.average == pytest.approx(sum(bits) / len(bits))
    assert found.average <= average + 1e-6
    for group in (0, 1):
        raised, kept = [], []
        for i in range(group, 6, 2):
            for q in range(4):
                (raised if found.widths[i][q] == 8 else kept).append((damage[i][q], spans[q]))
        for low, span in raised:  # a larger damage was left out only if it was more expensive
            assert all(other <= low or size > span for other, size in kept)


@given(steps=st.integers(4, 100))
def test_the_policy_switches_where_a_quarter_ends(steps: int) -> None:
    timesteps = [999.0 - 7.5 * i for i in range(steps)]
    policy = TimestepPolicy(mixed.quarter_bounds(timesteps))
    chosen = [policy.choose(i, t) for i, t in enumerate(timesteps)]
    assert chosen == [mixed.quarter_of(i, steps) for i in range(steps)]
    assert set(chosen) == {0, 1, 2, 3}


def test_a_trajectory_too_short_for_quarters_is_refused() -> None:
    with pytest.raises(HarnessError, match="3 steps"):
        mixed.quarter_bounds([900.0, 500.0, 100.0])


def test_every_quarter_is_probed_inside_itself() -> None:
    chosen = mixed.probe_samples(3, 16, 2)
    assert chosen == [[Sample(0, 4 * q + 1), Sample(1, 4 * q + 3)] for q in range(4)]


def test_proxies_see_what_they_are_for() -> None:
    draw = torch.Generator().manual_seed(0)
    exact = torch.randn(2, 3, 8, generator=draw)
    both = exact + torch.randn(1, 3, 8, generator=draw)  # the same error in both branches
    assert mixed.guidance_error(exact, both) == pytest.approx(0, abs=1e-10)
    assert mixed.output_error(exact, both) > 0.1
    still = exact + torch.randn(2, 1, 8, generator=draw)  # the same error in all frames
    assert mixed.motion_error(exact, still) == pytest.approx(0, abs=1e-10)
    assert mixed.output_error(exact, exact * 1.1) == pytest.approx(0.01, rel=1e-4)
    with pytest.raises(HarnessError, match="unconditional"):
        mixed.guidance_error(exact[:1], both[:1])


def test_a_metric_of_ones_own_is_found_and_a_wrong_name_is_refused() -> None:
    assert mixed.metric_named("text_metric", "math:dist") is __import__("math").dist
    with pytest.raises(UsageError, match="text_metric"):
        ViDiTQOptions(text_metric="gidance")
    with pytest.raises(UsageError, match="imported"):
        ViDiTQOptions(motion_metric="nowhere_to_be_found:metric")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[nn.Module, CalibrationPool]]:
    folder = tmp_path_factory.mktemp("pool")
    pipeline = tiny_pipeline()
    pool = record_pool(
        pipeline, PROMPTS, TINY_GEN, seed=0, folder=folder, progress=lambda done, text: None
    )
    yield pipeline.transformer, pool


def quantized(
    bench: tuple[nn.Module, CalibrationPool], bits: str = "w4a4", **options: object
) -> tuple[nn.Module, QuantReport]:
    transformer = copy.deepcopy(bench[0])
    ctx = QuantContext(
        bits=BitSpec.parse(bits), options=ViDiTQOptions(**{"samples": 4, **options}),  # type: ignore[arg-type]
        family=FAMILY, device=torch.device("cpu"), pool=bench[1],
    )  # fmt: skip
    return transformer, ViDiTQ().quantize_(transformer, ctx)


def output(transformer: nn.Module, pool: CalibrationPool, step: int = 2) -> torch.Tensor:
    with torch.no_grad():
        return transformer(**pool.call(Sample(1, step)).arguments)[0]


def test_linears_that_share_an_input_share_scale_and_signs(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    transformer, _ = quantized(bench)
    block = transformer.transformer_blocks[0]
    q, k = block.attn1.to_q, block.attn1.to_k
    assert [t.kind for t in q.transforms] == ["scale", "hadamard"]
    assert torch.equal(q.transforms[0].scale, k.transforms[0].scale)
    assert torch.equal(q.transforms[1].signs, k.transforms[1].signs)
    assert not q.weight_spec.symmetric
    assert not q.activation_spec.symmetric
    assert len(block.norm1.linear.transforms) == 0


def test_the_statistic_is_the_channel_maximum_over_tokens_and_timesteps(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    transformer, _ = quantized(bench, samples=12, branches="both")  # the whole pool
    block = bench[0].transformer_blocks[0]
    seen: list[torch.Tensor] = []
    handle = block.attn1.to_q.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for sample in bench[1].samples():
        with torch.no_grad():
            bench[0](**bench[1].call(sample).arguments)
    handle.remove()
    peak = torch.cat([x.reshape(-1, 32) for x in seen]).abs().amax(0)
    weights = [block.attn1.to_q.weight, block.attn1.to_k.weight, block.attn1.to_v.weight]
    expected = static_scale(peak, torch.cat(weights).detach().abs().amax(0), 0.11)
    got = transformer.transformer_blocks[0].attn1.to_v.transforms[0].scale
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=0)  # stored in half precision


@pytest.mark.parametrize(
    "options",
    [{"scale": False}, {"rotate": False}, {"balanced": "attention"}, {"alpha": 0.5},
     {"modulation": "fp"}, {"branches": "both"}],
    ids=str,
)  # fmt: skip
def test_every_option_changes_the_result(
    bench: tuple[nn.Module, CalibrationPool], options: dict[str, object]
) -> None:
    varied, _ = quantized(bench, **options)
    usual, _ = quantized(bench)
    assert not torch.equal(output(varied, bench[1]), output(usual, bench[1]))


def test_mixed_precision_spends_its_budget_and_survives_the_artifact(
    bench: tuple[nn.Module, CalibrationPool], tmp_path: Path
) -> None:
    transformer, report = quantized(bench, "w4a8", mixed="metric-decoupled")
    plain, plain_report = quantized(bench, "w4a8")
    assert "6." in report.mixed or "5." in report.mixed
    assert not plain_report.mixed
    switched = [m for m in transformer.modules() if isinstance(m, SwitchedLinear)]
    assert switched
    for layer in switched:
        assert {form.weight_spec.bits for form in layer.forms} == {4, 8}
        assert {form.activation_spec.bits for form in layer.forms} == {8}
    tokens = [e for e in report.layers if "norm" not in e.name]
    total = sum(e.parameters for e in tokens)
    average = sum(e.w_bits * e.parameters for e in tokens) / total
    assert 4 < average <= 6.2
    assert f"{average:.2f} bits" in report.notes[0]
    assert {e.w_bits for e in report.layers if "norm" in e.name} == {4}
    layers, evaluations = 4, (4 + 1) * 4
    assert f"{evaluations} denoiser evaluations" in report.notes[2]
    assert f"{layers} layers" in report.notes[2]
    extra = report.calibration_forwards - plain_report.calibration_forwards
    assert extra == evaluations * bench[1].branches

    policy = policy_of(transformer)
    assert isinstance(policy, TimestepPolicy)
    by_step = [output(transformer, bench[1], step) for step in range(4)]
    assert policy.trace == [0, 1, 2, 3]
    save_artifact(transformer, tmp_path, {})
    loaded = copy.deepcopy(bench[0])
    load_artifact_(loaded, tmp_path)
    for step, expected in enumerate(by_step):
        assert torch.equal(output(loaded, bench[1], step), expected)
    exact = output(*bench)
    assert float((by_step[2] - exact).square().sum()) < float(
        (output(plain, bench[1]) - exact).square().sum()
    )


def test_the_sensitivity_pass_gives_the_model_back_as_it_was(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    transformer = copy.deepcopy(bench[0])
    ctx = QuantContext(
        bits=BitSpec.parse("w4a4"), options=ViDiTQOptions(), family=FAMILY,
        device=torch.device("cpu"), pool=bench[1],
    )  # fmt: skip
    layers = mixed.layers_of(FAMILY, transformer)
    assert [(layer.name.split(".")[-1], layer.group) for layer in layers] == [
        ("0 attn", "text"), ("0 ff", "quality"), ("1 attn", "text"), ("1 ff", "quality"),
    ]  # fmt: skip
    before = output(transformer, bench[1])

    def halved(name: str) -> nn.Module:
        linear = copy.deepcopy(transformer.get_submodule(name))
        with torch.no_grad():
            linear.weight.mul_(0.5)
        return linear

    measured = mixed.measure_sensitivity(
        transformer, ctx, layers, {"text": mixed.guidance_error, "quality": mixed.output_error},
        mixed.probe_samples(3, 4, 1), halved,
    )  # fmt: skip
    assert torch.equal(output(transformer, bench[1]), before)
    assert all(value > 0 for row in measured.error for value in row)
    assert measured.damage[1] == measured.error[1]  # the feed-forward's metric is the output error
    assert measured.damage[0] != measured.error[0]


def test_a_width_above_the_budget_is_left_uniform_and_says_so(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    transformer, report = quantized(bench, "w8a8", mixed="metric-decoupled")
    assert policy_of(transformer) is None
    assert {e.w_bits for e in report.layers} == {8}
    assert any("raised nothing" in note for note in report.notes)


@pytest.mark.parametrize(
    ("name", "groups"),
    [("latte", {"text", "quality", "motion"}), ("wan", {"text", "quality"})],
)
def test_mixed_precision_finds_the_layer_groups_of_other_families_and_verifies(
    name: str, groups: set[str], tmp_path: Path
) -> None:
    other = make_bench(name, tmp_path)
    found = mixed.layers_of(family(name), other.pipeline.transformer)
    assert {layer.group for layer in found} == groups
    by_name = {layer.name.partition(".")[0] + layer.name[-5:]: layer.group for layer in found}
    if name == "latte":
        assert by_name["temporal_transformer_blocks attn"] == "motion"
        assert by_name["transformer_blocks attn"] == "quality"
        assert by_name["transformer_blockscross"] == "text"
    options = {"samples": 2, "mixed": "metric-decoupled"}
    transformer, artifact, report = other.quantize(ViDiTQ(), options, "w4a8", "mixed")
    assert report.mixed
    loaded = other.verify(artifact, "w4a8")
    assert torch.equal(other.output(loaded), other.output(transformer))


def test_a_model_without_guidance_branches_is_told_to_choose_another_metric(
    tmp_path: Path,
) -> None:
    other = make_bench("hunyuanvideo", tmp_path)
    options = {"samples": 2, "mixed": "metric-decoupled"}
    with pytest.raises(HarnessError, match="unconditional") as refused:
        other.quantize(ViDiTQ(), options, "w4a8", "refused")
    assert "text_metric = 'output'" in str(refused.value.hint)
    _, artifact, report = other.quantize(
        ViDiTQ(), {**options, "text_metric": "output"}, "w4a8", "told"
    )
    assert "text by output" in report.notes[1]
    other.verify(artifact, "w4a8")
