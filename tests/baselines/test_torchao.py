"""torchao's rows: what runs, what it computes, and the reasons where it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from baselines.torchao import (
    TorchAOFloat8,
    TorchAOInt4WeightOnly,
    TorchAOInt8,
)
from harness.bits import BitSpec
from harness.errors import HarnessError, UsageError
from harness.method import resolve_options
from harness.models.families import family_by_name as family
from harness.models.families.base import target_linears
from harness.quant.layers.library import LibraryLinear, installed_version, low_bit_product
from tests.baselines.back_ends import FAMILY, context, converted, error, miniature, one_layer

if TYPE_CHECKING:
    from harness.method import Method

METHODS = (TorchAOInt8(), TorchAOInt4WeightOnly(), TorchAOFloat8())
INSTALLED = bool(installed_version("torchao"))
needs_torchao = pytest.mark.skipif(not INSTALLED, reason="torchao is not installed")


def reason(method: Method, bits: str) -> str:
    answer = method.supports(FAMILY, BitSpec.parse(bits))
    return "" if answer is None else answer.reason


@pytest.mark.parametrize("bits", ["w4a4", "w4a8", "w8a16", "w16a16"])
def test_a_row_is_refused_under_a_label_it_does_not_have(bits: str) -> None:
    assert f"never as {bits}" in reason(TorchAOInt8(), bits)
    assert f"never as {bits}" in reason(TorchAOFloat8(), bits)
    assert f"never as {bits}" in reason(TorchAOInt4WeightOnly(), bits)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.quant.layers.library.installed_version", lambda library: "")
    bits = "w4a16" if method.name == "torchao-int4wo" else "w8a8"
    assert reason(method, bits) == (
        "torchao is not installed: pip install 'vdit-quant-harness[torchao]'"
    )


@pytest.mark.parametrize(
    ("method", "bits", "needed", "older"),
    [(TorchAOInt4WeightOnly(), "w4a16", "8.0", (7, 5)), (TorchAOFloat8(), "w8a8", "8.9", (8, 6))],
)
def test_a_device_that_cannot_is_the_reason(
    method: Method,
    bits: str,
    needed: str,
    older: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness.quant.layers.library.installed_version", lambda library: "0.18.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert f"needs a CUDA device (compute capability {needed}" in reason(method, bits)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: older)
    assert f"this device has {older[0]}.{older[1]}" in reason(method, bits)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert reason(method, bits) == ""


@pytest.mark.parametrize("method", METHODS[1:], ids=lambda m: m.name)
def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_is_refused(method: Method) -> None:
    bits = "w4a16" if method.name == "torchao-int4wo" else "w8a8"
    with pytest.raises(HarnessError, match="computes on CUDA only"):
        method.quantize_(miniature(), context(method, bits))


def test_a_group_that_torchao_cannot_pack_is_refused() -> None:
    with pytest.raises(UsageError, match="48"):
        resolve_options(TorchAOInt4WeightOnly(), {"group": 48})


def naive_int8(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Symmetric 8 bits per token and per output channel, element by element in float64.

    The step is torchao's: the largest magnitude over 127.5, the middle of the signed range.
    """

    def codes(row: list[float]) -> tuple[list[int], float]:
        step = max(max(abs(v) for v in row) / 127.5, torch.finfo(torch.float32).eps)
        return [max(-128, min(127, round(v / step))) for v in row], step

    rows = [codes(row) for row in x.double().tolist()]
    columns = [codes(row) for row in weight.double().tolist()]
    return torch.tensor(
        [
            [
                sum(a * b for a, b in zip(row, column, strict=True)) * step * wide + float(shift)
                for (column, wide), shift in zip(columns, bias.tolist(), strict=True)
            ]
            for row, step in rows
        ],
        dtype=torch.float64,
    )


def largest_positive(rows: torch.Tensor) -> torch.Tensor:
    """Flip rows whose largest magnitude is negative.

    It lies at 127.5 steps. Above zero both neighbours end as 127; below zero it is a tie between
    -127 and -128, which the last bit of a division decides.
    """
    largest = rows.gather(-1, rows.abs().argmax(-1, keepdim=True))
    return rows * largest.sign()


@needs_torchao
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([8, 24, 40]), st.booleans())
def test_the_int8_linear_is_symmetric_per_token_and_per_channel(
    seed: int, tokens: int, width: int, outlier: bool
) -> None:
    noise = torch.Generator().manual_seed(seed)
    weight = largest_positive(torch.randn(16, width, generator=noise))
    bias = torch.randn(16, generator=noise)
    linear = nn.Linear(width, 16)
    linear.load_state_dict({"weight": weight, "bias": bias})
    x = torch.randn(tokens, width, generator=noise)
    if outlier:
        x[0, 3] *= 50
    x = largest_positive(x)
    wanted = naive_int8(x, weight, bias)
    layer = one_layer(TorchAOInt8(), "w8a8", linear)
    with torch.no_grad():
        got = layer(x).double()
    assert (got - wanted).abs().median() < 1e-5 * wanted.abs().max()
    # A value next to a tie may take the other code: one step of x times the largest weights.
    slack = (x.abs().amax(-1, keepdim=True) / 127.5).double() * weight.abs().max()
    assert bool(((got - wanted).abs() <= slack * width / 8).all())


@needs_torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_multiplies_integers_and_says_so(dtype: torch.dtype) -> None:
    transformer, report = converted(TorchAOInt8(), "w8a8", dtype)
    assert report.execution == "kernel:torchao-int8"
    assert "_int_mm" in report.notes[0]
    layers = {n: m for n, m in transformer.named_modules() if isinstance(m, LibraryLinear)}
    targets = target_linears(family(FAMILY), miniature())
    assert set(layers) == set(targets)
    for name, layer in layers.items():
        integer = low_bit_product(layer, torch.device("cpu"))
        assert integer == ("" if targets[name].modulation else "_int_mm")
        assert layer.problems() == []
    assert 0 < error(transformer) < 1e-3


@needs_torchao
def test_modulation_linears_are_weight_only_or_left_out() -> None:
    _, report = converted(TorchAOInt8(), "w8a8")
    targets = target_linears(family(FAMILY), miniature())
    widths = {layer.name: (layer.w_bits, layer.a_bits) for layer in report.layers}
    assert widths == {n: (8, 16 if g.modulation else 8) for n, g in targets.items()}
    _, without = converted(TorchAOInt8(), "w8a8", modulation="fp")
    tokens = {name for name, group in targets.items() if not group.modulation}
    assert {layer.name for layer in without.layers} == tokens
    assert "in every linear" in without.notes[0]


@needs_torchao
def test_a_layer_that_torchao_would_skip_in_silence_is_an_error() -> None:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig

    from baselines.torchao import _converted
    from harness.quant.layers.library import LibraryScheme

    # fp8 wants multiples of 16; only that check runs before the device is asked for.
    linear = nn.Linear(24, 24)
    scheme = LibraryScheme(library="torchao", w_bits=8, a_bits=8)
    config = Float8DynamicActivationFloat8WeightConfig()
    import torchao.quantization.quant_api as api

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "_check_hardware_support", lambda granularity: None)
        with pytest.raises(HarnessError, match=r"left a linear of shape \[24, 24\] as it was"):
            _converted(linear, config, scheme)
