"""Loading an artifact of real width never holds the model at 16 bits."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import torch

from harness.errors import HarnessError
from harness.measure.packed import packed_facts
from harness.models.default_dtype import default_dtype
from harness.models.families import family_by_name
from harness.models.families.base import linear_at, target_linears
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.apply import activation_of
from harness.quant.layers.artifact import save_artifact
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import WeightSpec, quantize_linear

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs the resident peak of a process")
def test_the_peak_of_loading_is_below_six_tenths_of_the_16_bit_model(tmp_path: Path) -> None:
    from diffusers import CogVideoXTransformer3DModel

    torch.manual_seed(0)
    # The widths of CogVideoX-2B and two of its thirty blocks, 247 MB; a small clip, because the
    # table of its positions is as large for two blocks as for thirty.
    with default_dtype(torch.bfloat16):
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=30,
            attention_head_dim=64,
            num_layers=2,
            sample_frames=9,
            sample_width=16,
            sample_height=16,
        ).requires_grad_(False)
    family = family_by_name("cogvideox")
    for name, group in target_linears(family, transformer).items():
        layer = quantize_linear(
            linear_at(transformer, name), WeightSpec(bits=4, group=64),
            activation_of(group, ActivationSpec(bits=8)),
        )  # fmt: skip
        replace_module_(transformer, name, layer)
    save_artifact(transformer, tmp_path, {"model_class": "CogVideoXTransformer3DModel"})
    facts = packed_facts(tmp_path)
    assert facts.weights > 100_000_000
    assert facts.bytes_per_weight <= 0.6
    assert facts.resident_bytes < facts.peak_bytes
    assert facts.peak_share < 0.6


def test_what_is_no_artifact_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="is not an artifact"):
        packed_facts(tmp_path)
