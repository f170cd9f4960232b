"""QuaRot's rotation, its clipping, and what it does about outliers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from baselines.quarot import QuaRot, round_rotated
from baselines.rtn import RTN
from harness.errors import UsageError
from harness.method import resolve_options
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.grid import expand
from harness.quant.layers.linear import QuantLinear
from harness.quant.layers.transform import Hadamard
from harness.testing.conformance import Bench
from tests.tiny_bench import QUICK


def linear(width: int = 16, outputs: int = 6) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(width, outputs)
    nn.init.normal_(made.weight)
    return made.requires_grad_(False)


def naive_forward(x: Tensor, layer: nn.Linear, signs: Tensor, bits: int, clip: float) -> Tensor:
    """y = Q(x R) Q(W R)^T + b in loops: Sylvester's matrix, clipped tokens, searched rows."""
    width = x.shape[1]
    hadamard = [[1.0]]
    while len(hadamard) < width:
        hadamard = [r + r for r in hadamard] + [r + [-v for v in r] for r in hadamard]

    def rotate(row: Tensor) -> list[float]:
        signed = [float(v) * float(s) for v, s in zip(row, signs, strict=True)]
        return [
            sum(signed[k] * hadamard[k][j] for k in range(width)) / width**0.5 for j in range(width)
        ]

    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def fake(row: list[float], factor: float, half: bool) -> list[float]:
        step = max(abs(v) for v in row) * factor / high
        step = float(torch.tensor(step).half()) if half else step
        return [min(max(round(v / step), low), high) * step for v in row]

    def searched(row: list[float]) -> list[float]:
        tried = [fake(row, 1 - 0.01 * k, False) for k in range(81)]
        errors = [sum((a - b) ** 2 for a, b in zip(t, row, strict=True)) for t in tried]
        return fake(row, 1 - 0.01 * errors.index(min(errors)), True)

    tokens = [fake(rotate(row), clip, False) for row in x]
    rows = [searched(rotate(row)) for row in layer.weight]
    return torch.tensor(
        [
            [
                sum(a * b for a, b in zip(t, row, strict=True)) + float(bias)
                for row, bias in zip(rows, layer.bias, strict=True)
            ]
            for t in tokens
        ]
    )


@pytest.mark.parametrize("bits", [3, 4])
def test_a_rounded_linear_is_that_of_the_loops(bits: int) -> None:
    layer = linear()
    turn = Hadamard.random(16, torch.Generator().manual_seed(3))
    spec = ActivationSpec(bits=bits, clip_low=0.9, clip_high=0.9)
    made = round_rotated(layer, bits, spec, [turn], None)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    expected = naive_forward(x, layer, turn.signs, bits, 0.9)
    torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=1e-3)


def test_the_rotation_spreads_a_channel_that_rounding_could_not_bear() -> None:
    layer = linear(64, 32)
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    x[:, 7] *= 60
    spec = ActivationSpec(bits=4, clip_low=0.9, clip_high=0.9)
    turn = Hadamard.random(64, torch.Generator().manual_seed(3))
    exact = layer(x)
    errors = [
        float((round_rotated(layer, 4, spec, t, None)(x) - exact).square().sum())
        for t in ([turn], [])
    ]
    assert errors[0] < 0.5 * errors[1]


def quant_layers(bench: Bench, options: dict[str, object], name: str) -> dict[str, QuantLinear]:
    made, _, _ = bench.quantize(QuaRot(), {**QUICK, **options}, "w4a4", name)
    return {n: m for n, m in made.named_modules() if isinstance(m, QuantLinear)}


def test_linears_that_read_one_tensor_share_a_rotation_and_modulation_has_none(
    bench: Bench,
) -> None:
    layers = quant_layers(bench, {}, "shared")
    signs = {n: [t.tensors()["signs"] for t in m.transforms] for n, m in layers.items()}
    block = "transformer_blocks.0"
    for other in ("to_k", "to_v"):
        assert torch.equal(signs[f"{block}.attn1.to_q"][0], signs[f"{block}.attn1.{other}"][0])
    assert not torch.equal(signs[f"{block}.attn1.to_q"][0], signs[f"{block}.attn1.to_out.0"][0])
    assert not signs[f"{block}.norm1.linear"]
    assert layers[f"{block}.norm1.linear"].activation_spec.bits == 16
    spec = layers[f"{block}.attn1.to_q"].activation_spec
    assert (spec.symmetric, spec.clip_low, spec.clip_high) == (True, 0.9, 0.9)


def test_gptq_and_rounding_to_nearest_share_their_grids_and_differ_in_codes(bench: Bench) -> None:
    gptq = quant_layers(bench, {"rounding": "gptq"}, "gptq")
    nearest = quant_layers(bench, {"rounding": "rtn"}, "rtn")
    name = "transformer_blocks.1.ff.net.0.proj"
    a, b = gptq[name], nearest[name]
    assert a.grid is not None and b.grid is not None
    assert torch.equal(expand(a.grid, 0).scale, expand(b.grid, 0).scale)
    assert not torch.equal(a.codes, b.codes)


def test_planted_outliers_hurt_it_less_than_plain_rounding(bench: Bench) -> None:
    import copy

    from harness.models.families import family_by_name
    from harness.models.outliers import plant_outliers_

    pipeline = copy.copy(bench.pipeline)
    pipeline.register_modules(transformer=copy.deepcopy(bench.pipeline.transformer))
    plant_outliers_(pipeline.transformer, family_by_name("cogvideox"))
    hard = Bench(pipeline=pipeline, family="cogvideox", pool=bench.pool, folder=bench.folder)
    rotated = hard.quantize(QuaRot(), QUICK, "w8a4", "hard")[0]
    plain = hard.quantize(RTN(), {}, "w8a4", "hard")[0]
    assert hard.error(rotated) < 0.5 * hard.error(plain)


def test_the_report_says_that_ranges_are_cut_at_eight_bits_too(bench: Bench) -> None:
    notes = {}
    for bits, clip in (("w8a8", 0.9), ("w8a8", 1.0), ("w4a4", 0.9)):
        report = bench.quantize(QuaRot(), {**QUICK, "clip": clip}, bits, f"cut-{clip}")[2]
        notes[bits, clip] = report.notes
    assert any("cut to 0.9 at 8 bits" in note for note in notes["w8a8", 0.9])
    assert not notes["w8a8", 1.0]
    assert not notes["w4a4", 0.9]


def test_options_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(UsageError):
        resolve_options(QuaRot(), {"clip": 1.2})
    with pytest.raises(UsageError):
        resolve_options(QuaRot(), {"rounding": "up"})
