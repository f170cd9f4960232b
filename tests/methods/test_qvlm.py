"""Q-VLM: dependency, partition and joint search against naive references; the port's two walks."""

from __future__ import annotations

import copy
import itertools
import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.bits import BitSpec
from harness.errors import UsageError
from harness.method import QuantContext, QuantReport, resolve_options
from harness.models.block_input import Sample
from harness.models.families import family_by_name
from harness.models.trajectories import CalibrationPool, record_pool
from harness.quant.calibration.capture import run_block
from harness.quant.calibration.samples import uniform_samples
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import QuantLinear, WeightSpec, quantize_linear
from harness.quant.rounding.clip import search_clip
from harness.testing.conformance import PROMPTS, TINY_GEN, make_bench, tiny_pipeline
from methods.qvlm.blocks import (
    conditional_entropy,
    dependency_threshold,
    joint_search,
    nodes_of,
    over_trajectory,
    partition,
    thin,
)
from methods.qvlm.method import QVLM, QVLMOptions
from methods.qvlm.search import RATIOS
from tests.blocks import first_block_inputs, split_branches

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAMILY = family_by_name("cogvideox")


def naive_entropy(first: list[int], second: list[int]) -> float:
    """- sum over pairs of p(a, b) log p(b | a), by counting."""
    n = len(first)
    total = 0.0
    for a in sorted(set(first)):
        count_a = sum(x == a for x in first)
        for b in sorted(set(second)):
            both = sum(x == a and y == b for x, y in zip(first, second, strict=True))
            if both:
                total -= both / n * math.log(both / count_a)
    return total


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 60), levels=st.integers(2, 16))
def test_the_dependency_is_the_conditional_entropy(seed: int, count: int, levels: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    first, second = torch.randint(0, levels, (2, count), generator=draw, dtype=torch.uint8)
    got = conditional_entropy(first, second, levels)
    assert got == pytest.approx(naive_entropy(first.tolist(), second.tolist()), abs=1e-12)


def test_a_code_that_decides_the_next_has_no_entropy_and_an_independent_one_has_all() -> None:
    first = torch.arange(16).repeat_interleave(16)
    assert conditional_entropy(first, 15 - first) == pytest.approx(0)
    assert conditional_entropy(first, torch.arange(16).repeat(16)) == pytest.approx(math.log(16))


def naive_partition(
    dependencies: list[float | None], threshold: float, length: int
) -> list[list[int]]:
    """Take the longest allowed block from the left, checking the rule at every extension."""
    nodes, blocks, start = len(dependencies) + 1, [], 0
    while start < nodes:
        end = start
        while end + 1 < nodes and end + 1 - start < length:
            inside = dependencies[start : end + 1]
            if None in inside or sum(d or 0 for d in inside) <= len(inside) * threshold:
                break
            end += 1
        blocks.append(list(range(start, end + 1)))
        start = end + 1
    return blocks


@given(
    dependencies=st.lists(st.one_of(st.none(), st.integers(0, 6).map(float)), max_size=12),
    threshold=st.integers(0, 6).map(float),
    length=st.integers(1, 4),
)
def test_the_partition_is_the_rule_of_the_paper(
    dependencies: list[float | None], threshold: float, length: int
) -> None:
    got = partition(dependencies, threshold, length)
    assert got == naive_partition(dependencies, threshold, length)
    assert list(itertools.chain(*got)) == list(range(len(dependencies) + 1))


@pytest.mark.parametrize(
    ("dependencies", "expected"),
    [
        ([2.0, 0.0, 2.0], [[0, 1], [2, 3]]),  # two pairs must exceed twice the threshold
        ([1.0, 1.0, 1.0], [[0], [1], [2], [3]]),  # a tie with the threshold does not join
        ([3.0, 0.0, 0.0], [[0, 1, 2], [3]]),  # the mean inside still exceeds it
        ([2.0, 2.0, 2.0, 2.0, 2.0], [[0, 1, 2], [3, 4, 5]]),  # at most three
        ([2.0, None, 2.0], [[0, 1], [2, 3]]),  # undefined: the block ends
        ([None, None], [[0], [1], [2]]),
        ([], [[0]]),
    ],
)
def test_partitions_of_hand_made_entropies(
    dependencies: list[float | None], expected: list[list[int]]
) -> None:
    assert partition(dependencies, 1.0, 3) == expected


def test_the_threshold_leaves_undefined_dependencies_out() -> None:
    assert dependency_threshold([1.0, None, 2.0, 6.0], "mean") == pytest.approx(3)
    assert dependency_threshold([1.0, None, 2.0, 6.0], "median") == pytest.approx(2)
    assert dependency_threshold([None], "mean") == math.inf


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 3))
def test_the_joint_search_is_brute_force_up_to_three_nodes(seed: int, count: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    table = torch.randint(0, 40, (5,) * count, generator=draw)
    seen: list[tuple[int, ...]] = []

    def error(choice: tuple[int, ...]) -> float:
        seen.append(choice)
        return float(table[choice])

    best = joint_search((5,) * count, error)
    assert len(seen) == 5**count
    assert float(table[best]) == float(table.min())
    ties = [c for c in itertools.product(range(5), repeat=count) if table[c] == table.min()]
    assert best == ties[0]


def test_many_variables_are_searched_in_turn_and_separable_errors_are_solved() -> None:
    costs = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[int, ...]] = []

    def error(choice: tuple[int, ...]) -> float:
        seen.append(choice)
        return float(sum(costs[i, c] for i, c in enumerate(choice)))

    assert joint_search((5,) * 6, error) == tuple(costs.argmin(1).tolist())
    assert len(seen) == 2 * 6 * 5


def test_what_interacts_is_found_together_and_not_one_by_one() -> None:
    # each alone is best left at 0; both at 1 are better still
    table = {(0, 0): 1.0, (0, 1): 2.0, (1, 0): 2.0, (1, 1): 0.0}
    assert joint_search((2, 2), table.__getitem__) == (1, 1)
    assert joint_search((2, 2), table.__getitem__, limit=1) == (0, 0)


def test_the_search_samples_cover_the_trajectory_with_several_prompts() -> None:
    samples = [Sample(prompt, step) for prompt in range(4) for step in range(0, 20, 2)]
    chosen = over_trajectory(samples, 8)
    assert len(set(chosen)) == 8
    assert set(chosen) <= set(samples)
    assert {0, 18} <= {s.step for s in chosen}
    assert len({s.step for s in chosen}) == 8
    assert len({s.prompt for s in chosen}) > 1
    assert over_trajectory(samples[:3], 8) == samples[:3]


def test_thinning_is_even_and_bounded() -> None:
    x = torch.arange(2 * 7 * 6).reshape(2, 7, 6)
    assert torch.equal(thin(x), x.reshape(14, 6))
    assert torch.equal(thin(x, 5, 3), x.reshape(14, 6)[::3, ::2])
    assert thin(torch.zeros(3, 4099, 8)).shape[0] <= 4096


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
        bits=BitSpec.parse(bits),
        options=QVLMOptions(**{"samples": 4, "search_samples": 2, **options}),  # type: ignore[arg-type]
        family=FAMILY, device=torch.device("cpu"), pool=bench[1],
    )  # fmt: skip
    return transformer, QVLM().quantize_(transformer, ctx)


def output(transformer: nn.Module, pool: CalibrationPool) -> torch.Tensor:
    with torch.no_grad():
        return transformer(**pool.call(Sample(1, 2)).arguments)[0]


def test_nodes_are_the_sub_layer_inputs_of_the_residual_width(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    nodes = nodes_of(FAMILY, bench[0])
    assert [(n.block, [g.name for g in n.groups]) for n in nodes[:3]] == [
        (0, ["attn_in"]), (0, ["attn_out"]), (0, ["ff_in", "ff_out"]),
    ]  # fmt: skip
    assert len(nodes) == 6


def by_hand(bench: tuple[nn.Module, CalibrationPool]) -> tuple[list[float], float]:
    """Brute force over the clips of the first block's three nodes, written out."""
    transformer = copy.deepcopy(bench[0])
    _, block = FAMILY.blocks(transformer)[0]
    samples = over_trajectory(uniform_samples(bench[1], 4, 10), 2)
    inputs = split_branches(first_block_inputs(transformer, FAMILY, bench[1], samples), "alternate")
    with torch.no_grad():
        exact = [run_block(block, FAMILY, one) for one in inputs]
    layers: list[list[QuantLinear]] = [[], [], []]
    node_of = {"attn_in": 0, "attn_out": 1, "ff_in": 2, "ff_out": 2}
    for group in FAMILY.groups(block):
        for linear in group.linears:
            full = block.get_submodule(linear)
            layer = quantize_linear(
                full, WeightSpec(bits=4, symmetric=False),
                ActivationSpec(bits=16 if group.modulation else 4, symmetric=False),
                clip=search_clip(full.weight, 4, symmetric=False),
            )  # fmt: skip
            replace_module_(block, linear, layer)
            if not group.modulation:
                layers[node_of[group.name]].append(layer)
    best, least = [1.0] * 3, math.inf
    for ratios in itertools.product(RATIOS, repeat=3):
        for ratio, own in zip(ratios, layers, strict=True):
            for layer in own:
                layer.activation_spec = ActivationSpec(
                    bits=4, symmetric=False, clip_low=ratio, clip_high=ratio
                )
        error = scale = 0.0
        with torch.no_grad():
            for one, target in zip(inputs, exact, strict=True):
                out = run_block(block, FAMILY, one)
                error += sum(float((out[k] - target[k]).square().sum()) for k in out)
                scale += sum(float(target[k].square().sum()) for k in out)
        if error / scale < least:
            best, least = list(ratios), error / scale
    return best, least


def test_the_search_of_a_whole_transformer_block_is_brute_force(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    transformer, report = quantized(bench, partition="fixed")
    best, least = by_hand(bench)
    assert report.curves["block_length"] == [3.0, 3.0]
    assert report.curves["activation_clip"][:3] == best
    assert report.curves["block_error"][0] == pytest.approx(least, rel=1e-5)
    block = transformer.transformer_blocks[0]
    specs = [
        block.get_submodule(n).activation_spec
        for n in ("attn1.to_q", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
    ]
    assert [s.clip_high for s in specs] == [best[0], best[0], best[1], best[2], best[2]]
    assert all(s.clip_low == s.clip_high and not s.symmetric for s in specs)
    assert block.norm1.linear.activation_spec.bits == 16


def test_blocks_of_nodes_may_cross_transformer_blocks(
    bench: tuple[nn.Module, CalibrationPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crossing(dependencies: object, threshold: float, length: int) -> list[list[int]]:
        return [[0, 1], [2, 3, 4], [5]]

    monkeypatch.setattr("methods.qvlm.method.partition", crossing)
    transformer, report = quantized(bench)
    assert report.curves["block_length"] == [2.0, 3.0, 1.0]
    layers = [m for m in transformer.modules() if isinstance(m, QuantLinear)]
    assert len(layers) == len(report.layers) == 16
    second = transformer.transformer_blocks[1]
    clips = report.curves["activation_clip"]
    assert second.attn1.to_q.activation_spec.clip_high == clips[3]
    assert second.attn1.to_out[0].activation_spec.clip_high == clips[4]
    assert second.ff.net[2].activation_spec.clip_high == clips[5]


def test_dependencies_are_measured_between_all_neighbours_and_explain_the_partition(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    _, report = quantized(bench)
    found = report.curves["dependency"]
    assert len(found) == 5  # six nodes, also across the transformer blocks
    assert all(0 < d < math.log(16) for d in found)
    expected = partition(found, sum(found) / 5, 3)
    assert report.curves["block_length"] == [float(len(piece)) for piece in expected]
    assert f"h_0 = {sum(found) / 5:.3f} nats" in report.notes[0]
    assert "visual encoder" in report.notes[1]


def test_joint_search_is_no_worse_than_greedy_at_the_first_transformer_block(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    _, joint = quantized(bench, partition="fixed")
    _, greedy = quantized(bench, partition="greedy")
    assert greedy.curves["block_length"] == [1.0] * 6
    # the third greedy search ends where the first joint one does
    assert joint.curves["block_error"][0] <= greedy.curves["block_error"][2] * (1 + 1e-6)
    assert greedy.calibration_samples == 2
    assert joint.calibration_samples == 4


@pytest.mark.parametrize(
    "options",
    [
        {"activations": "static"},
        {"search": "both"},
        {"partition": "greedy"},
        {"modulation": "fp"},
        {"branches": "cond"},
        {"activations": "static", "partition": "greedy"},
        {"threshold": "median", "length": 2},
    ],
    ids=str,
)
def test_every_option_runs_and_leaves_every_linear_quantized(
    bench: tuple[nn.Module, CalibrationPool], options: dict[str, object]
) -> None:
    transformer, report = quantized(bench, **options)
    out = output(transformer, bench[1])
    assert bool(torch.isfinite(out).all())
    layers = [m for m in transformer.modules() if isinstance(m, QuantLinear)]
    assert len(layers) == (12 if "modulation" in options else 16)
    tokens = [m for m in layers if m.activation_spec.bits == 4]
    assert len(tokens) == 12
    assert all(m.activation_spec.is_static == ("activations" in options) for m in tokens)
    if options.get("search") == "both":
        assert min(report.curves["weight_clip"]) < 1
    if options.get("length") == 2:
        assert max(report.curves["block_length"]) <= 2


def test_weight_factors_multiply_the_initial_range(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    transformer, report = quantized(bench, search="both")
    factor = report.curves["weight_clip"][0]
    layer = transformer.transformer_blocks[0].attn1.to_q
    full = bench[0].transformer_blocks[0].attn1.to_q
    expected = quantize_linear(
        full, WeightSpec(bits=4, symmetric=False), layer.activation_spec,
        clip=search_clip(full.weight, 4, symmetric=False) * factor,
    )  # fmt: skip
    assert torch.equal(layer.codes, expected.codes)
    assert torch.equal(layer.scale, expected.scale)


def test_sixteen_bits_are_neither_searched_nor_clipped(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    transformer, report = quantized(bench, "w16a16")
    assert set(report.curves["activation_clip"]) == {1.0}
    assert all(math.isnan(e) for e in report.curves["block_error"])
    torch.testing.assert_close(output(transformer, bench[1]), output(*bench))


def test_a_longer_block_than_the_papers_is_refused() -> None:
    with pytest.raises(UsageError, match="length"):
        resolve_options(QVLM(), {"length": 4})


def test_the_linears_of_other_families_follow_their_nodes() -> None:
    hunyuan = family_by_name("hunyuanvideo")
    found = nodes_of(hunyuan, tiny_pipeline(family="hunyuanvideo").transformer)
    dual = [[g.name for g in n.groups] for n in found if n.block == 0]
    assert dual == [
        ["attn_in", "text_attn_in"], ["attn_out"],
        ["ff_in", "ff_out", "text_ff_in", "text_ff_out"],
    ]  # fmt: skip
    assert [g.name for g in found[-1].groups] == ["attn_in", "attn_ff_out"]
    wan = nodes_of(family_by_name("wan"), tiny_pipeline(family="wan").transformer)
    assert [g.name for g in wan[2].groups] == ["cross_q_in", "cross_text_in", "cross_out"]


@pytest.mark.parametrize("name", ["hunyuanvideo", "latte"])
def test_a_block_of_nodes_ends_where_streams_merge_or_tokens_are_rearranged(
    name: str, tmp_path: Path
) -> None:
    bench = make_bench(name, tmp_path)
    options = {"samples": 2, "search_samples": 2, "partition": "fixed"}
    transformer, artifact, report = bench.quantize(QVLM(), options, "w4a4", "fixed")
    facts = family_by_name(name)
    nodes = nodes_of(facts, bench.pipeline.transformer)
    ends = []
    for k, (a, b) in enumerate(itertools.pairwise(nodes)):
        kinds = [facts.blocks(bench.pipeline.transformer)[n.block][0].split(".")[0] for n in (a, b)]
        if kinds[0] != kinds[1]:
            ends.append(k)
    assert ends
    undefined = [k for k, d in enumerate(report.curves["dependency"]) if math.isnan(d)]
    assert undefined == ends
    last = itertools.accumulate(report.curves["block_length"])
    assert {float(k + 1) for k in ends} <= set(last)
    loaded = bench.verify(artifact, "w4a4")
    assert torch.equal(bench.output(loaded), bench.output(transformer))
