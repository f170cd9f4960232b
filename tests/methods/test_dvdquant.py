"""DVD-Quant's switching and rounding against loops written from its formulas, in float64."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.artifact.quantize import quantize
from harness.artifact.verify import verify
from harness.bits import BitSpec
from harness.errors import CalibrationForbiddenError, UsageError
from harness.method import QuantContext, QuantReport, resolve_options
from harness.models.families import FAMILIES, family_by_name
from harness.models.families.base import InputGroup
from harness.quant.layers.artifact import load_artifact_
from harness.quant.layers.hadamard import factors
from harness.quant.layers.linear import QuantLinear
from harness.quant.layers.policy import DeltaPolicy, delta_schedule, policy_of
from harness.quant.layers.switch import SwitchedLinear
from harness.testing.conformance import GENS, TINY_GEN, tiny_pipeline
from methods.dvdquant.method import DVDQuant, DVDQuantOptions, _Rounding
from methods.dvdquant.switching import (
    bisect_delta,
    delta_guided_bit_switching_,
    mean_width,
    output_changes,
)

if TYPE_CHECKING:
    from pathlib import Path


def naive_schedule(changes: list[float], delta: float) -> list[int]:
    """B = low while the changes since the last high step t_p sum up to less than delta.

    The sum over t = t_p .. t_i - 1 of L1(F, t) = ||F_t - F_(t-1)|| / ||F_(t-1)|| needs two outputs,
    so that steps 0 and 1 are high.
    """
    chosen = [1, 1][: len(changes)]
    last_high = 1
    for step in range(2, len(changes)):
        total = 0.0
        for t in range(last_high, step):
            total += changes[t]
        if total < delta:
            chosen.append(0)
        else:
            chosen.append(1)
            last_high = step
    return chosen


def test_the_schedule_on_traces_made_by_hand() -> None:
    even = [0.0] + [0.1] * 7
    assert delta_schedule(even, 0.05) == [1] * 8
    assert delta_schedule(even, 0.15) == [1, 1, 0, 1, 0, 1, 0, 1]
    assert delta_schedule(even, 0.25) == [1, 1, 0, 0, 1, 0, 0, 1]
    assert delta_schedule(even, 99.0) == [1, 1, 0, 0, 0, 0, 0, 0]
    assert delta_schedule(even, 0.0) == [1] * 8
    ends_move = [0.0, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9]
    assert delta_schedule(ends_move, 0.15) == [1, 1, 1, 1, 0, 1, 0, 1, 1, 1]


@settings(deadline=None)
@given(
    changes=st.lists(st.integers(0, 64), min_size=1, max_size=30), delta=st.integers(0, 300)
)  # fmt: skip
def test_the_schedule_is_that_of_the_loop(changes: list[int], delta: int) -> None:
    eighths = [c / 8 for c in changes]  # sums of eighths are exact: no tie depends on their order
    assert delta_schedule(eighths, delta / 8) == naive_schedule(eighths, delta / 8)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), delta=st.floats(0.0, 3.0))
def test_the_policy_that_watches_outputs_takes_the_steps_of_the_schedule(
    seed: int, delta: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = list(torch.randn(12, 2, 3, generator=generator).cumsum(0))
    policy = DeltaPolicy(delta)
    for i, output in enumerate(outputs):
        policy.before(1000.0 - i)
        policy.after(torch.stack([torch.zeros_like(output), output]))
    assert policy.trace == naive_schedule(output_changes(outputs), delta)


def test_a_change_is_relative_to_the_output_before_and_the_first_step_has_none() -> None:
    outputs = list(torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)))
    expected = [0.0]
    for now, before in zip(outputs[1:], outputs, strict=False):
        difference = sum(
            abs(a - b)
            for a, b in zip(now.flatten().tolist(), before.flatten().tolist(), strict=True)
        )
        expected.append(difference / sum(abs(b) for b in before.flatten().tolist()))
    assert output_changes(outputs) == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    changes=st.lists(st.floats(1e-3, 2.0), min_size=3, max_size=25), target=st.floats(4.0, 8.0)
)  # fmt: skip
def test_no_threshold_has_a_mean_width_nearer_to_the_target(
    changes: list[float], target: float
) -> None:
    found = abs(mean_width(delta_schedule(changes, bisect_delta(changes, target))) - target)
    sums = {sum(changes[a:b]) for a in range(1, len(changes)) for b in range(a, len(changes) + 1)}
    for threshold in sums:
        for delta in (threshold, threshold * (1 + 1e-9) + 1e-12):
            assert found <= abs(mean_width(naive_schedule(changes, delta)) - target) + 1e-12


def test_the_threshold_lies_in_the_middle_of_its_plateau() -> None:
    even = [0.0] + [0.1] * 50
    delta = bisect_delta(even, 6.0)
    assert mean_width(delta_schedule(even, delta)) == pytest.approx(6.0, abs=0.1)
    # [1, 1, 0, 1, 0, ...] is chosen for thresholds above one change and up to two
    assert delta == pytest.approx(0.15)


def test_a_trajectory_without_change_and_one_of_two_steps_have_a_threshold() -> None:
    assert mean_width(delta_schedule([0.0] * 8, bisect_delta([0.0] * 8, 6.0))) == 5.0
    assert mean_width(delta_schedule([0.0, 0.3], bisect_delta([0.0, 0.3], 6.0))) == 8.0


def make_context(bits: str, sampler: Any = None, **options: Any) -> QuantContext:
    return QuantContext(
        bits=BitSpec.parse(bits), options=DVDQuantOptions(**options),
        family=family_by_name("cogvideox"),
        device=torch.device("cpu"), data_free=True, sampler=sampler,
    )  # fmt: skip


def round_linear(width: int, bits: str, **options: Any) -> tuple[nn.Linear, QuantLinear]:
    torch.manual_seed(0)
    linear = nn.Linear(width, 6)
    nn.init.normal_(linear.weight)
    context = make_context(bits, **options)
    layer = _Rounding(context, (context.bits.a,)).layer(
        linear, InputGroup(name="ff_in", role="feed_forward_in", linears=("x",))
    )
    assert isinstance(layer, QuantLinear)
    return linear, layer


def naive_levels(values: list[float], bits: int) -> list[float]:
    """Symmetric absmax rounding of numbers that share a step."""
    top = 2 ** (bits - 1) - 1
    step = max(max(abs(v) for v in values) / top, 1e-8)
    return [max(-top - 1, min(top, round(v / step))) * step for v in values]


@pytest.mark.parametrize("arq", ["group", "literal", "none"])
def test_a_layer_is_the_rotated_input_rounded_as_the_form_says(arq: str) -> None:
    width, tokens, group = 12, 5, 4
    _, layer = round_linear(width, "w4a4", arq=arq, group=group)
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(1)) * 3
    rotated = x.double()
    if arq != "none":
        signs = layer.get_submodule("transforms.0").get_buffer("signs").double()
        outer, inner = factors(width, torch.float64)
        rotated = (rotated * signs) @ torch.kron(outer, inner)
    rows = rotated.tolist()
    if arq == "literal":
        columns = [naive_levels([row[j] for row in rows], 4) for j in range(width)]
        rounded = [[columns[j][t] for j in range(width)] for t in range(tokens)]
    else:
        size = group if arq == "group" else width
        rounded = [
            [v for g in range(0, width, size) for v in naive_levels(row[g : g + size], 4)]
            for row in rows
        ]
    expected = torch.tensor(rounded, dtype=torch.float64) @ layer.dequantized().double().T
    assert layer.bias is not None
    expected += layer.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_refined_weights_are_nearer_than_those_of_min_max() -> None:
    errors = {}
    for bgr in (True, False):
        linear, layer = round_linear(128, "w3a16", bgr=bgr, arq="none")
        errors[bgr] = float((layer.dequantized() - linear.weight).detach().square().sum())
    assert errors[True] < 0.9 * errors[False]


def test_linears_of_one_input_are_rotated_alike_and_modulation_is_not_rotated() -> None:
    rounding = _Rounding(make_context("w4a4"), (4,))
    group = InputGroup(name="cross_text_in", role="cross_attention_text", linears=("k", "v"))
    first, second = (rounding.layer(nn.Linear(16, 8), group) for _ in range(2))
    signs = [layer.get_submodule("transforms.0").get_buffer("signs") for layer in (first, second)]
    assert torch.equal(*signs)
    modulation = InputGroup(name="modulation", role="modulation", linears=("m",))
    plain = rounding.layer(nn.Linear(16, 8), modulation)
    assert isinstance(plain, QuantLinear)
    assert len(plain.transforms) == 0
    assert plain.activation_spec.bits == 16


@pytest.mark.parametrize(
    "bad", [{"arq": "block"}, {"delta": -0.1}, {"delta": math.nan}, {"group": 0}, {"probes": 0}]
)
def test_options_that_cannot_be_meant_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        resolve_options(DVDQuant(), bad)


def quantized(bits: str, out: Path, **options: Any) -> tuple[nn.Module, QuantReport]:
    pipeline = tiny_pipeline()
    out.mkdir()
    report = quantize(
        pipeline, DVDQuant(), bits=BitSpec.parse(bits), options=options, family="cogvideox",
        gen=TINY_GEN, pool=None, seed=0, out=out, progress=lambda fraction, text: None,
    )  # fmt: skip
    return pipeline.transformer, report


def test_w4a6_is_a_mixture_of_steps_whose_true_mean_is_reported_and_stored(tmp_path: Path) -> None:
    transformer, report = quantized("w4a6", tmp_path / "out")
    widths = report.curves["activation_bits_by_step"]
    assert len(widths) == TINY_GEN.steps
    assert widths[:2] == [8.0, 8.0]
    mean = sum(widths) / len(widths)
    assert mean == pytest.approx(6.0, abs=0.5)
    token_layers = [layer for layer in report.layers if layer.a_bits != 16]
    assert token_layers
    assert {layer.a_bits for layer in token_layers} == {mean}
    assert "2 and 8 bits at 2 of 4 steps" in report.mixed
    # full precision once and the quantized model once or more, two guidance branches a step
    assert report.calibration_forwards % (2 * TINY_GEN.steps) == 0
    assert report.calibration_forwards >= 4 * TINY_GEN.steps
    fresh = tiny_pipeline().transformer
    load_artifact_(fresh, tmp_path / "out")
    here, there = policy_of(transformer), policy_of(fresh)
    assert isinstance(here, DeltaPolicy)
    assert there is not None
    assert there.facts() == here.facts()
    switched = [m for m in fresh.modules() if isinstance(m, SwitchedLinear)]
    assert len(switched) == len(token_layers)
    assert [form.activation_spec.bits for form in switched[0].forms] == [4, 8]
    assert switched[0].forms[0].packed is switched[0].forms[1].packed


def test_a_given_threshold_is_used_and_only_checked(tmp_path: Path) -> None:
    transformer, report = quantized("w4a6", tmp_path / "out", delta=1e6)
    policy = policy_of(transformer)
    assert policy is not None
    assert policy.facts()["delta"] == 1e6
    assert report.curves["activation_bits_by_step"] == [8.0, 8.0, 4.0, 4.0]
    assert report.calibration_forwards == 2 * TINY_GEN.steps


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "cogvideox"])
def test_the_mixture_is_found_and_stored_on_every_family(name: str, tmp_path: Path) -> None:
    pipeline = tiny_pipeline(family=name)
    report = quantize(
        pipeline, DVDQuant(), bits=BitSpec.parse("w4a6"), options={}, family=name, gen=GENS[name],
        pool=None, seed=0, out=tmp_path, progress=lambda fraction, text: None,
    )  # fmt: skip
    assert report.curves["activation_bits_by_step"] == [8.0, 8.0, 4.0, 4.0]
    verify(
        tiny_pipeline(family=name), tmp_path, family=name, bits=BitSpec.parse("w4a6"), fresh=True
    )


class Trajectory(nn.Module):
    """A denoiser whose output follows a script of changes, whatever its input."""

    def __init__(self, changes: list[float]) -> None:
        super().__init__()
        levels = torch.tensor([1.0 + c for c in changes]).cumprod(0)
        self.outputs = levels[:, None].expand(-1, 4)

    def forward(self, *, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.outputs[len(self.outputs) - int(timestep)][None],)

    def sample(self, seed: int = 0) -> list[torch.Tensor]:
        steps = range(len(self.outputs), 0, -1)
        return [self(timestep=torch.tensor(float(t)))[0][0] for t in steps]


def test_a_threshold_that_misses_on_the_quantized_model_is_corrected_there() -> None:
    little = [0.01 + 0.001 * (i % 5) for i in range(23)]
    exact = Trajectory([0.0, *little])
    quantized_model = Trajectory([0.0, *(20 * change for change in little)])
    context = make_context("w4a6", quantized_model.sample)
    nothing = QuantReport(execution="simulated", layers=())
    report = delta_guided_bit_switching_(quantized_model, context, exact.sample(), nothing, [])
    widths = report.curves["activation_bits_by_step"]
    assert sum(widths) / len(widths) == pytest.approx(6.0, abs=4 / 24)
    assert "3 trajectories" in report.notes[-1]
    policy = policy_of(quantized_model)
    assert policy is not None
    assert 0.2 < policy.facts()["delta"] < 0.56  # one change, and two of the largest
    # without the correction: every change is above the threshold of the full-precision trajectory
    assert bisect_delta(output_changes(exact.sample()), 6.0) < 0.1


@pytest.mark.parametrize(("bits", "word"), [("w4a4", "infinity"), ("w4a8", "= 0"), ("w8a8", "no ")])
def test_every_other_width_is_uniform_and_samples_nothing(bits: str, word: str) -> None:
    def forbidden(seed: int) -> list[torch.Tensor]:
        raise AssertionError("a uniform row needs no trajectory")

    transformer = copy.deepcopy(tiny_pipeline().transformer)
    context = make_context(bits, forbidden)
    report = DVDQuant().quantize_(transformer, context)
    assert report.mixed == ""
    assert report.calibration_forwards == 0
    assert policy_of(transformer) is None
    assert any(word in note for note in report.notes)
    assert {layer.a_bits for layer in report.layers} == {BitSpec.parse(bits).a, 16}
    with pytest.raises(CalibrationForbiddenError):
        _ = context.calibration
