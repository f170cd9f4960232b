"""ViDiT-Q's metric-decoupled mixed precision: budgets, sensitivity, and what it leaves."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.bits import BitSpec
from harness.errors import HarnessError, UsageError
from harness.method import QuantContext, QuantReport, resolve_options
from harness.models.families import family_by_name
from harness.models.trajectories import CalibrationPool, record_pool
from harness.quant import Sample, SwitchedLinear, TimestepPolicy
from harness.quant.layers.artifact import load_artifact_, save_artifact
from harness.quant.layers.policy import policy_of
from harness.testing.conformance import PROMPTS, TINY_GEN, make_bench, tiny_pipeline
from methods.viditq.allocation import Candidate, group_budgets, most_sensitive, plan
from methods.viditq.method import ViDiTQ, ViDiTQOptions
from methods.viditq.metrics import guidance_error, metric_named, motion_error, output_error
from methods.viditq.quarters import quarter_bounds, quarter_of, steps_in
from methods.viditq.sensitivity import (
    Layer,
    Measured,
    layers_of,
    measure_sensitivity,
    probe_samples,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAMILY = family_by_name("cogvideox")


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
    shares = group_budgets(budget, e, c)
    assert set(shares) == set(names)
    assert sum(shares.values()) == pytest.approx(min(budget, sum(capacity)), abs=1e-6)
    assert all(shares[g] <= c[g] * (1 + 1e-9) for g in names)
    open_groups = [g for g in names if shares[g] < c[g] * (1 - 1e-9) and e[g] > 1e-6]
    for a in open_groups:
        for b in open_groups:
            assert shares[a] * e[b] == pytest.approx(shares[b] * e[a], rel=1e-6, abs=1e-6)


def test_budgets_on_hand_made_numbers() -> None:
    error, capacity = {"a": 3.0, "b": 1.0}, {"a": 10.0, "b": 10.0}
    assert group_budgets(8, error, capacity) == pytest.approx({"a": 6, "b": 2})
    assert group_budgets(16, error, capacity) == pytest.approx({"a": 10, "b": 6})
    nothing = {"a": 0.0, "b": 0.0}
    assert group_budgets(8, nothing, capacity) == pytest.approx({"a": 4, "b": 4})


def candidate(layer: int, quarter: int, damage: float, cost: float = 1.0) -> Candidate:
    return Candidate(layer=layer, quarter=quarter, group="g", cost=cost, error=1.0, damage=damage)


def test_the_most_sensitive_are_raised_until_the_budget_is_used() -> None:
    pool = [candidate(0, 0, 5, 3), candidate(1, 0, 9, 2), candidate(2, 0, 4, 2), candidate(3, 0, 1)]
    taken = [c.layer for c in most_sensitive(pool, 5)]
    assert taken == [1, 0]
    assert [c.layer for c in most_sensitive(pool, 4)] == [1, 2]  # 3 no longer fits
    assert [c.layer for c in most_sensitive(pool, 0)] == []
    assert {c.layer for c in most_sensitive(pool, 8)} == {0, 1, 2, 3}


def test_equal_damage_is_raised_in_the_noisier_quarter_first() -> None:
    pool = [candidate(0, 3, 1), candidate(0, 1, 1), candidate(1, 1, 1)]
    taken = [(c.quarter, c.layer) for c in most_sensitive(pool, 2)]
    assert taken == [(1, 0), (1, 1)]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), steps=st.integers(4, 50), average=st.floats(4, 8))
def test_the_plan_keeps_to_its_average_and_prefers_damage_within_a_group(
    seed: int, steps: int, average: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    layers = [Layer(f"l{i}", ("text", "quality")[i % 2], (f"l{i}",), 100) for i in range(6)]
    error, damage = torch.rand(2, 6, 4, generator=draw).tolist()
    found = plan(layers, Measured(error, damage, 0), 4, average, steps)
    spans = [steps_in(q, steps) for q in range(4)]
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
    policy = TimestepPolicy(quarter_bounds(timesteps))
    chosen = [policy.choose(i, t) for i, t in enumerate(timesteps)]
    assert chosen == [quarter_of(i, steps) for i in range(steps)]
    assert set(chosen) == {0, 1, 2, 3}


def test_a_trajectory_too_short_for_quarters_is_refused() -> None:
    with pytest.raises(HarnessError, match="3 steps"):
        quarter_bounds([900.0, 500.0, 100.0])


def test_every_quarter_is_probed_inside_itself() -> None:
    chosen = probe_samples(3, 16, 2)
    assert chosen == [[Sample(0, 4 * q + 1), Sample(1, 4 * q + 3)] for q in range(4)]


def test_proxies_see_what_they_are_for() -> None:
    draw = torch.Generator().manual_seed(0)
    exact = torch.randn(2, 3, 8, generator=draw)
    both = exact + torch.randn(1, 3, 8, generator=draw)  # the same error in both branches
    assert guidance_error(exact, both) == pytest.approx(0, abs=1e-10)
    assert output_error(exact, both) > 0.1
    still = exact + torch.randn(2, 1, 8, generator=draw)  # the same error in all frames
    assert motion_error(exact, still) == pytest.approx(0, abs=1e-10)
    assert output_error(exact, exact * 1.1) == pytest.approx(0.01, rel=1e-4)
    with pytest.raises(HarnessError, match="unconditional"):
        guidance_error(exact[:1], both[:1])


def test_a_metric_of_ones_own_is_found_and_a_wrong_name_is_refused() -> None:
    assert metric_named("math:dist") is __import__("math").dist
    with pytest.raises(UsageError, match=r"text_metric.*'gidance'.*no metric"):
        resolve_options(ViDiTQ(), {"text_metric": "gidance"})
    with pytest.raises(UsageError, match=r"motion_metric.*imported"):
        resolve_options(ViDiTQ(), {"motion_metric": "nowhere_to_be_found:metric"})


@pytest.mark.parametrize(
    "bad", [{"alpha": 1.5}, {"balanced": "some"}, {"average_bits": 9}, {"sensitivity_samples": 0}]
)
def test_what_cannot_be_meant_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        resolve_options(ViDiTQ(), bad)


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
    layers = layers_of(FAMILY, transformer)
    assert [(layer.name.split(".")[-1], layer.group) for layer in layers] == [
        ("0 attn", "text"), ("0 ff", "quality"), ("1 attn", "text"), ("1 ff", "quality"),
    ]  # fmt: skip
    before = output(transformer, bench[1])

    def halved(name: str) -> nn.Module:
        linear = copy.deepcopy(transformer.get_submodule(name))
        with torch.no_grad():
            linear.weight.mul_(0.5)
        return linear

    measured = measure_sensitivity(
        transformer, ctx, layers, {"text": guidance_error, "quality": output_error},
        probe_samples(3, 4, 1), halved,
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
    found = layers_of(family_by_name(name), other.pipeline.transformer)
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
