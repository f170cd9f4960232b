"""Verification finds what is wrong with an artifact."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from harness.artifact.verify import verify
from harness.bits import BitSpec
from harness.errors import HarnessError
from harness.models.families import family_by_name
from harness.models.families.base import linear_at, target_linears
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.apply import activation_of
from harness.quant.layers.artifact import save_artifact
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import QuantLinear, WeightSpec, quantize_linear
from harness.testing.conformance import tiny_pipeline

if TYPE_CHECKING:
    from pathlib import Path

FAMILY = family_by_name("cogvideox")
PIPELINE = tiny_pipeline()
VICTIM = "transformer_blocks.1.ff.net.2"


def judged(folder: Path, transformer: nn.Module, options: dict[str, str] | None = None) -> None:
    save_artifact(transformer, folder, {"options": options or {}})
    fresh = copy.copy(PIPELINE)
    fresh.register_modules(transformer=copy.deepcopy(PIPELINE.transformer))
    verify(fresh, folder, family="cogvideox", bits=BitSpec.parse("w4a4"), fresh=False)


@pytest.fixture
def transformer() -> nn.Module:
    made = copy.deepcopy(PIPELINE.transformer)
    for name, group in target_linears(FAMILY, made).items():
        spec = activation_of(group, ActivationSpec(bits=4))
        linear = quantize_linear(linear_at(made, name), WeightSpec(bits=4), spec)
        replace_module_(made, name, linear)
    return made


def restore(transformer: nn.Module, *names: str) -> None:
    for name in names:
        original = copy.deepcopy(linear_at(PIPELINE.transformer, name))
        replace_module_(transformer, name, original)


def victim(transformer: nn.Module) -> QuantLinear:
    found = transformer.get_submodule(VICTIM)
    assert isinstance(found, QuantLinear)
    return found


def test_a_sound_artifact_passes(tmp_path: Path, transformer: nn.Module) -> None:
    judged(tmp_path, transformer)


def test_a_target_that_was_forgotten_is_named(tmp_path: Path, transformer: nn.Module) -> None:
    restore(transformer, VICTIM)
    with pytest.raises(HarnessError, match=f"{VICTIM} is a target but is not quantized"):
        judged(tmp_path, transformer)


def test_modulation_may_be_left_out_only_by_the_option(
    tmp_path: Path, transformer: nn.Module
) -> None:
    left = [n for n, g in target_linears(FAMILY, PIPELINE.transformer).items() if g.modulation]
    restore(transformer, *left)
    with pytest.raises(HarnessError, match=r"norm1\.linear is a target but is not quantized"):
        judged(tmp_path, transformer)
    judged(tmp_path, transformer, {"modulation": "fp"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"static_low": 0.5, "static_high": -0.5}, "range 0.5..-0.5 is empty"),
        ({"clip_low": 0.0}, "clip factors"),
    ],
)
def test_an_activation_range_that_holds_nothing_is_found(
    tmp_path: Path, transformer: nn.Module, change: dict[str, float], said: str
) -> None:
    layer = victim(transformer)
    layer.activation_spec = dataclasses.replace(layer.activation_spec, **change)
    with pytest.raises(HarnessError, match=said):
        judged(tmp_path, transformer)


def test_a_step_that_is_not_finite_is_found(tmp_path: Path, transformer: nn.Module) -> None:
    scale = victim(transformer).scale
    assert scale is not None
    scale[0] = torch.inf
    with pytest.raises(HarnessError, match="a step is not finite"):
        judged(tmp_path, transformer)
