"""A whole quantized linear, against the simulated one in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.linear import QuantLinear, WeightSpec, quantize_linear
from harness.quant.layers.low_rank import LowRank
from harness.quant.layers.transform import Hadamard
from tests.kernels.triton.parts import (
    int8_linear,
    prepare_weight,
    quantize_tokens,
    rotate_quantize,
    seeded,
)

TOLERANCE = 1e-6
"""Of the largest output, between the sums of float32 values and exact ones: 192 terms."""


def computed(layer: QuantLinear, x: Tensor, device: str) -> Tensor:
    """The layer's output by the kernels, from what the layer holds."""
    spec, of = layer.activation_spec, layer.weight_spec
    options = {
        "bits": spec.bits, "group": spec.group, "symmetric": spec.symmetric,
        "clip_low": spec.clip_low, "clip_high": spec.clip_high,
        "static": (spec.static_low, spec.static_high) if spec.is_static else None,
    }  # fmt: skip
    exact = x.to(device)
    if len(layer.transforms):
        signs = layer.transforms[0].signs.to(device)
        tokens, exact = rotate_quantize(exact, signs, keep=True, **options)
    else:
        tokens = quantize_tokens(exact, **options)
    shape = layer.out_features, layer.in_features
    zero = None if layer.zero is None else layer.zero.to(device)
    weight = prepare_weight(
        layer.packed.to(device), shape, layer.scale.to(device), zero, bits=of.bits, group=of.group
    )
    branch = None
    if layer.low_rank is not None:
        down, up = layer.low_rank.down.to(device), layer.low_rank.up.to(device)
        branch = (exact @ down.T, up)
    return int8_linear(
        *tokens, weight.data, weight.scale, weight.zero, bits=of.bits,
        group=of.group or spec.group,
        w_sums=weight.sums if of.group == (of.group or spec.group) else None,
        bias=None if layer.bias is None else layer.bias.to(device), low_rank=branch,
        out_dtype=torch.float32,
    ).cpu()  # fmt: skip


def linear(width: int = 192, rows: int = 48) -> nn.Linear:
    made = nn.Linear(width, rows)
    with torch.no_grad():
        for value in (made.weight, made.bias):
            value.copy_(torch.randn(value.shape, generator=seeded(rows)) / 10)
    return made


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(
    ("weight", "activation"),
    [
        (WeightSpec(bits=8), ActivationSpec(bits=8)),
        (WeightSpec(bits=4, symmetric=False), ActivationSpec(bits=8, symmetric=False)),
        (WeightSpec(bits=4, group=64), ActivationSpec(bits=6)),
        (WeightSpec(bits=6, symmetric=False), ActivationSpec(bits=6, group=32)),
        (WeightSpec(bits=4, symmetric=False, group=96), ActivationSpec(bits=4, symmetric=False)),
        (
            WeightSpec(bits=8, symmetric=False),
            ActivationSpec(bits=8, symmetric=False, static_low=-2.0, static_high=3.0),
        ),
        (
            WeightSpec(bits=4, group=64),
            ActivationSpec(bits=4, group=64, clip_low=0.9, clip_high=0.95),
        ),
    ],
    ids=str,
)
def test_outputs_are_those_of_the_simulation(
    device: str, weight: WeightSpec, activation: ActivationSpec
) -> None:
    layer = quantize_linear(linear(), weight, activation)
    x = torch.randn(9, 192, generator=seeded(3)) + 0.2
    x[4] = 0
    with torch.no_grad():
        assert distance(computed(layer, x, device), layer(x)) < TOLERANCE


def test_a_branch_reads_the_exact_input(device: str) -> None:
    generator = seeded(4)
    branch = LowRank(
        torch.randn(8, 192, generator=generator) / 10, torch.randn(48, 8, generator=generator) / 10,
        rounded=False,
    )  # fmt: skip
    layer = quantize_linear(linear(), WeightSpec(bits=4), ActivationSpec(bits=4), low_rank=branch)
    x = torch.randn(5, 192, generator=generator)
    with torch.no_grad():
        wanted = layer(x)
        assert distance(computed(layer, x, device), wanted) < TOLERANCE
        layer.low_rank = None
        assert distance(computed(layer, x, device), wanted) > 0.01


def test_a_rotated_layer_is_off_by_single_codes_at_most(device: str) -> None:
    rotation = Hadamard.random(192, seeded(5))
    layer = quantize_linear(
        linear(), WeightSpec(bits=8), ActivationSpec(bits=8), transforms=[rotation]
    )
    x = torch.randn(9, 192, generator=seeded(6))
    with torch.no_grad():
        wanted = layer(x)
        # a step of 8 bits is 1/127 of the largest input, and one in a thousand codes may be off
        assert distance(computed(layer, x, device), wanted) < 1e-2
        layer.transforms = nn.ModuleList()
        assert distance(computed(layer, x, device), wanted) > 0.1
