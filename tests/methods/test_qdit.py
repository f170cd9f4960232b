"""Q-DiT's quantizers against loops, and its search on a miniature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.errors import UsageError
from harness.method import resolve_options
from harness.models.families import family_by_name as family
from harness.models.families.base import target_linears
from harness.quant.calibration.samples import uniform_samples
from harness.quant.layers.activation import ActivationSpec, quantize_activation
from harness.quant.layers.linear import QuantLinear
from harness.testing.conformance import make_bench
from methods.qdit.group_search import GroupSearch, bit_operations
from methods.qdit.method import QDiT
from tests.tiny_bench import QUICK

if TYPE_CHECKING:
    from harness.testing.conformance import Bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench("cogvideox", tmp_path_factory.mktemp("qdit"))


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 8),
    group=st.sampled_from([1, 2, 3, 6]),
    shift=st.floats(-3, 3),
)
def test_an_activation_has_a_range_for_each_sample_token_and_group(
    seed: int, bits: int, group: int, shift: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 6, generator=draw) + shift
    spec = ActivationSpec(bits=bits, symmetric=False, group=group)
    got = quantize_activation(x, spec).double()
    for sample in range(2):
        for token in range(3):
            for start in range(0, 6, group):
                part = [float(v) for v in x[sample, token, start : start + group]]
                low, high = min([*part, 0.0]), max([*part, 0.0])
                step = (high - low) / (2**bits - 1)
                for j, value in enumerate(part):
                    mine = float(got[sample, token, start + j])
                    # on the grid that contains zero, within its range, no farther than half a step
                    # (one step where the zero point was rounded away from an end)
                    assert abs(mine / step - round(mine / step)) < 1e-2
                    assert low - step <= mine <= high + step
                    assert abs(mine - value) <= 1.001 * step


def test_weights_and_activations_of_a_layer_have_the_same_groups(bench: Bench) -> None:
    made, _, report = bench.quantize(QDiT(), {**QUICK, "group": 16}, "w4a4", "groups")
    targets = target_linears(family("cogvideox"), bench.pipeline.transformer)
    for name, layer in made.named_modules():
        if not isinstance(layer, QuantLinear):
            continue
        size = 16 if layer.in_features % 16 == 0 else layer.in_features
        assert layer.weight_spec.group == size
        assert not layer.weight_spec.symmetric
        if targets[name].modulation:
            assert layer.activation_spec.bits == 16
        else:
            assert layer.activation_spec == ActivationSpec(bits=4, symmetric=False, group=size)
    assert report.notes == ("groups of 16 do not fit every input width; groups of 8 at width 8",)


def test_smaller_groups_lower_the_error_of_the_layers(bench: Bench) -> None:
    totals = []
    for group in (8, 32):
        options = {**QUICK, "group": group, "inputs": "fp", "modulation": "fp"}
        _, _, report = bench.quantize(QDiT(), options, "w3a8", f"error-{group}")
        totals.append(sum(layer.error or 0.0 for layer in report.layers))
    assert totals[0] < totals[1]


def test_bit_operations_count_products_and_rescalings() -> None:
    linear = nn.Linear(12, 5)
    total = 0
    for _ in range(7 * 5):  # tokens x outputs
        for start in range(0, 12, 4):
            total += sum(4 * 8 for _ in range(start, start + 4))
            total += 16 * 16
    assert bit_operations(7, linear, 4, 4, 8) == total


SEARCH = {
    "search": True, "sizes": (4, 8, 16, 32), "group": 16, "population": 6, "parents": 3,
    "mutations": 3, "crossovers": 2, "rounds": 2, "search_samples": 2, "bitops": 1.2,
}  # fmt: skip


def test_the_search_keeps_its_budget_and_every_evaluation_is_counted(bench: Bench) -> None:
    made, _, report = bench.quantize(QDiT(), {**QUICK, **SEARCH}, "w4a4", "searched")
    losses = report.curves["search_loss"]
    assert len(losses) == SEARCH["rounds"] + 1  # type: ignore[operator]
    assert losses == sorted(losses, reverse=True)
    sizes = {n: m.weight_spec.group for n, m in made.named_modules() if isinstance(m, QuantLinear)}
    assert len(set(sizes.values())) > 1
    for block in ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1"):
        assert sizes[f"{block}.to_q"] == sizes[f"{block}.to_k"] == sizes[f"{block}.to_v"]
    plain = bench.quantize(QDiT(), {**QUICK, "group": 16}, "w4a4", "unsearched")[2]
    note = report.notes[-1]
    assert float(note.split("; ")[1].split()[0]) <= SEARCH["bitops"]  # type: ignore[operator]
    configurations = int(note.split(" from ")[1].split()[0])
    assert configurations > 6
    spent = report.calibration_forwards - plain.calibration_forwards
    assert spent == (configurations + 1) * 2 * bench.pool.branches


def group_search(bench: Bench, transformer: nn.Module) -> GroupSearch:
    from harness.bits import BitSpec
    from harness.method import QuantContext

    ctx = QuantContext(
        bits=BitSpec.parse("w4a4"), options=None, family=family("cogvideox"),
        device=torch.device("cpu"), pool=bench.pool,
    )  # fmt: skip
    return GroupSearch(transformer, ctx, uniform_samples(bench.pool, 2, 2), (8, 16, 32), 16)


def test_the_loss_of_a_configuration_does_not_depend_on_what_was_tried_before(
    bench: Bench,
) -> None:
    import copy

    from methods.qdit.evolution import Evolution

    transformer = copy.deepcopy(bench.pipeline.transformer)
    search = group_search(bench, transformer)
    settings_ = Evolution(
        population=4, parents=2, mutations=1, crossovers=1, probability=0.5, rounds=1
    )
    found = search.search(settings_, 2.0)
    before = {n: p.clone() for n, p in bench.pipeline.transformer.named_parameters()}
    after = dict(transformer.named_parameters())
    assert set(after) == set(before)
    assert all(torch.equal(after[n], value) for n, value in before.items())
    assert search.bitops(found.best) <= 2.0 * search.bitops(search.start)
    assert search.loss(found.best) == found.loss
    search.loss(search.start)
    assert search.loss(found.best) == found.loss


@pytest.mark.parametrize("wrong", [{"sizes": ()}, {"sizes": (0,)}, {"bitops": 0.5}, {"group": 0}])
def test_options_that_cannot_be_meant_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        resolve_options(QDiT(), wrong)
