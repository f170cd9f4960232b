"""Step policies and the layers they switch."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.artifact import artifact_bytes, load_artifact_, save_artifact
from harness.quant.layers.linear import WeightSpec, quantize_linear
from harness.quant.layers.policy import (
    DeltaPolicy,
    TimestepPolicy,
    attach_policy_,
    delta_schedule,
    policy_of,
)
from harness.quant.layers.switch import SwitchedLinear

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 64


class _Denoiser(nn.Module):
    """One linear; returns as diffusers does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = False) -> Any:
        out = self.linear(hidden_states)
        return SimpleNamespace(sample=out) if return_dict else (out,)


def switched(linear: nn.Linear, w: tuple[int, int], a: tuple[int, int]) -> SwitchedLinear:
    return SwitchedLinear(
        [
            quantize_linear(linear, WeightSpec(bits=wb), ActivationSpec(bits=ab))
            for wb, ab in zip(w, a, strict=True)
        ]
    )


def driven(policy: Any, w: tuple[int, int] = (4, 4), a: tuple[int, int] = (4, 8)) -> _Denoiser:
    torch.manual_seed(0)
    model = _Denoiser()
    model.linear = switched(model.linear, w, a)
    attach_policy_(model, policy)
    return model


def naive_schedule(changes: list[float], delta: float) -> list[int]:
    """The rule as printed: low while the sum from t_p to t_i - 1 is below delta, else t_p = t_i."""
    chosen, t_p = [], 0
    for t_i in range(len(changes)):
        if t_i < 2:  # no change is known yet
            chosen.append(1)
            t_p = t_i
            continue
        total = 0.0
        for t in range(t_p, t_i):
            total += changes[t]
        if total < delta:
            chosen.append(0)
        else:
            chosen.append(1)
            t_p = t_i
    return chosen


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=60),
    st.floats(0, 2),
)
def test_the_schedule_is_the_printed_rule(changes: list[float], delta: float) -> None:
    assert delta_schedule(changes, delta) == naive_schedule(changes, delta)


@pytest.mark.parametrize(
    ("changes", "delta", "expected"),
    [
        ([9, 0.1, 0.1, 0.1, 0.1, 0.1], 0.0, [1, 1, 1, 1, 1, 1]),
        ([9, 0.1, 0.1, 0.1, 0.1, 0.1], 0.15, [1, 1, 0, 1, 0, 1]),
        ([9, 0.1, 0.1, 0.1, 0.1, 0.1], 0.25, [1, 1, 0, 0, 1, 0]),
        ([9, 0.1, 0.1, 0.1, 0.1, 0.1], 99.0, [1, 1, 0, 0, 0, 0]),
        ([9, 0.1, 0.5, 0.1, 0.1], 0.4, [1, 1, 0, 1, 0]),
        ([1.0], 1.0, [1]),
    ],
)
def test_schedules_of_hand_made_traces(
    changes: list[float], delta: float, expected: list[int]
) -> None:
    assert delta_schedule(changes, delta) == expected


def test_the_policy_in_a_denoiser_follows_the_schedule_of_its_own_outputs() -> None:
    model, delta = driven(DeltaPolicy(0.4)), 0.4
    outputs = []
    x = torch.randn(2, 3, WIDTH)
    for timestep in range(20, 0, -1):
        x = x + 0.15 * torch.randn(2, 3, WIDTH)
        outputs.append(model(hidden_states=x, timestep=torch.tensor([timestep] * 2))[0][-1])
    changes = [0.0]
    for before, now in pairwise(outputs):
        changes.append(float((now - before).abs().sum() / before.abs().sum()))
    policy = policy_of(model)
    assert policy is not None
    assert policy.trace == delta_schedule(changes, delta)
    assert 0 < sum(policy.trace[2:]) < 18


def test_two_calls_at_one_timestep_are_one_step_and_a_rise_begins_anew() -> None:
    model = driven(TimestepPolicy((500.0,)))
    policy = policy_of(model)
    assert policy is not None
    x = torch.randn(1, 2, WIDTH)
    for timestep in (900, 900, 500, 500, 100, 100):
        model(hidden_states=x, timestep=torch.tensor(timestep), return_dict=True)
    assert policy.trace == [0, 1, 1]
    model(hidden_states=x, timestep=torch.tensor(900))
    assert policy.trace == [0]


def test_the_active_form_computes() -> None:
    model = driven(TimestepPolicy((500.0,)))
    layer, x = model.linear, torch.randn(1, 2, WIDTH)
    high, low = (model(hidden_states=x, timestep=torch.tensor(t))[0] for t in (900, 100))
    assert torch.equal(high, layer.forms[0](x))
    assert torch.equal(low, layer.forms[1](x))
    assert not torch.equal(high, low)


@pytest.mark.parametrize("policy", [TimestepPolicy((700.0,)), DeltaPolicy(0.4)])
@pytest.mark.parametrize("w", [(4, 4), (4, 8)])
def test_a_policy_and_its_layers_survive_saving(
    policy: Any, w: tuple[int, int], tmp_path: Path
) -> None:
    model = driven(policy, w=w)
    save_artifact(model, tmp_path, {})
    loaded = _Denoiser()
    load_artifact_(loaded, tmp_path)
    for timestep in (900, 800, 700, 600, 500):
        x = torch.randn(2, 3, WIDTH)
        outs = [m(hidden_states=x, timestep=torch.tensor(timestep))[0] for m in (model, loaded)]
        assert torch.equal(*outs)
    traces = [p.trace for m in (model, loaded) if (p := policy_of(m)) is not None]
    assert len(traces) == 2
    assert traces[0] == traces[1]


def test_forms_that_differ_in_activations_alone_are_stored_once(tmp_path: Path) -> None:
    sizes = {}
    for name, w in (("one", (4, 4)), ("two", (4, 8))):
        (tmp_path / name).mkdir()
        save_artifact(driven(DeltaPolicy(1.0), w=w), tmp_path / name, {})
        sizes[name] = artifact_bytes(tmp_path / name)
        shared = json.loads((tmp_path / name / "artifact.json").read_text())["layers"]["linear"]
        assert ("choices.1.codes" in shared["shared"]) == (name == "one")
    assert sizes["two"] - sizes["one"] > WIDTH * WIDTH  # the second form's 8-bit codes
    layer = driven(DeltaPolicy(1.0)).linear
    assert layer.forms[0].packed is layer.forms[1].packed


def test_bounds_that_do_not_descend_are_refused() -> None:
    with pytest.raises(ValueError, match="do not descend"):
        TimestepPolicy((1.0, 2.0))
