"""ViDiT-Q against loops written from the paper, and on the miniature."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.bits import BitSpec
from harness.method import QuantContext, QuantReport
from harness.models.block_input import Sample
from harness.models.families import family_by_name
from harness.models.trajectories import CalibrationPool, record_pool
from harness.quant.layers import hadamard
from harness.quant.layers.activation import ActivationSpec, quantize_activation
from harness.quant.layers.linear import WeightSpec, quantize_linear
from harness.quant.layers.transform import ChannelScale, Hadamard
from harness.testing.conformance import PROMPTS, TINY_GEN, make_bench, tiny_pipeline
from methods.viditq.method import ViDiTQ, ViDiTQOptions, static_scale

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAMILY = family_by_name("cogvideox")


def naive_row(row: list[float], bits: int) -> list[float]:
    """The paper's dynamic quantizer on one token: min and max include 0."""
    high, low = max(*row, 0.0), min(*row, 0.0)
    step = max((high - low) / (2**bits - 1), 1e-8)
    zero = round(-low / step)
    return [(min(max(round(v / step) + zero, 0), 2**bits - 1) - zero) * step for v in row]


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([4, 6, 8]))
def test_every_token_of_every_batch_element_has_its_own_asymmetric_range(
    seed: int, bits: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 7, generator=draw, dtype=torch.float64)
    x = x * torch.rand(2, 3, 1, generator=draw) * 10 + torch.randn(2, 3, 1, generator=draw)
    got = quantize_activation(x, ActivationSpec(bits=bits, symmetric=False))
    for b in range(2):
        for t in range(3):
            assert got[b, t].tolist() == pytest.approx(naive_row(x[b, t].tolist(), bits), abs=1e-9)


def test_a_token_of_zeros_does_not_touch_the_steps_of_the_others() -> None:
    x = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    spec = ActivationSpec(bits=8, symmetric=False)
    alone = quantize_activation(x, spec)
    beside = quantize_activation(torch.cat([x, torch.zeros(1, 1, 16)], 1), spec)
    assert torch.equal(beside[:, :4], alone)
    assert not bool(beside[:, 4].any())


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0, 1))
def test_the_scale_is_that_of_both_releases(seed: int, alpha: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = (torch.rand(9, generator=draw) * 20 + 0.01).double()
    w = (torch.rand(9, generator=draw) + 0.01).double()
    got = static_scale(x, w, alpha).tolist()
    of_2024 = [a**alpha / b ** (1 - alpha) for a, b in zip(x.tolist(), w.tolist(), strict=True)]
    flipped = 1 - alpha
    of_2025 = [b**flipped / a ** (1 - flipped) for a, b in zip(x.tolist(), w.tolist(), strict=True)]
    assert got == pytest.approx(of_2024)
    assert got == pytest.approx([1 / m for m in of_2025])


def test_dead_channels_get_a_finite_scale() -> None:
    scale = static_scale(torch.tensor([0.0, 2.0]), torch.tensor([0.5, 0.0]), 0.11)
    assert scale.tolist() == pytest.approx([1e-3**0.11 / 0.5**0.89, 1.0])


@pytest.mark.parametrize("width", [12, 32, 36, 144])
def test_scale_then_rotation_cancels_on_the_weight_side_in_float64(width: int) -> None:
    draw = torch.Generator().manual_seed(width)
    x = torch.randn(5, width, generator=draw, dtype=torch.float64)
    w = torch.randn(4, width, generator=draw, dtype=torch.float64)
    s = static_scale(x.abs().amax(0), w.abs().amax(0), 0.11)
    turn = Hadamard.random(width, draw)
    outer, inner = hadamard.factors(width, torch.float64)
    dense = turn.signs.double()[:, None] * torch.kron(outer, inner)
    torch.testing.assert_close(dense.T @ dense, torch.eye(width, dtype=torch.float64))
    balanced, rotated = (x / s) @ dense, (w * s) @ dense
    torch.testing.assert_close(balanced @ rotated.T, x @ w.T, rtol=1e-12, atol=1e-12)
    # the modules do the same in the same order
    module = turn(ChannelScale(s)(x))
    torch.testing.assert_close(module, balanced, rtol=1e-5, atol=1e-5)
    weight = turn.weight(ChannelScale(s).weight(w))
    torch.testing.assert_close(weight, rotated, rtol=1e-5, atol=1e-5)


def test_a_weight_is_rounded_once_in_the_balanced_basis() -> None:
    draw = torch.Generator().manual_seed(0)
    linear = nn.Linear(16, 5)
    transforms = [ChannelScale(torch.rand(16, generator=draw) + 0.5), Hadamard.random(16, draw)]
    layer = quantize_linear(
        linear, WeightSpec(bits=4, symmetric=False), ActivationSpec(bits=16), transforms=transforms
    )
    exact = transforms[1].weight(transforms[0].weight(linear.weight.detach()))
    assert layer.scale is not None
    off = (layer.dequantized() - exact).abs() / layer.scale
    assert float(off.max()) < 0.5 + 0.02  # steps are stored in half precision, the range ends move


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


def test_linears_that_share_an_input_share_scale_and_signs(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    transformer, _ = quantized(bench)
    block = transformer.transformer_blocks[0]
    q, k = block.attn1.to_q, block.attn1.to_k
    assert [t.kind for t in q.transforms] == ["scale", "hadamard"]
    assert torch.equal(q.transforms[0].scale, k.transforms[0].scale)
    assert torch.equal(q.transforms[1].signs, k.transforms[1].signs)
    assert not q.weight_spec.symmetric
    assert not q.activation_spec.symmetric
    assert len(block.norm1.linear.transforms) == 0


def test_the_statistic_is_the_channel_maximum_over_tokens_and_timesteps(
    bench: tuple[nn.Module, CalibrationPool],
) -> None:
    transformer, _ = quantized(bench, samples=12, branches="both")  # the whole pool
    block = bench[0].transformer_blocks[0]
    seen: list[torch.Tensor] = []
    handle = block.attn1.to_q.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for sample in bench[1].samples():
        with torch.no_grad():
            bench[0](**bench[1].call(sample).arguments)
    handle.remove()
    peak = torch.cat([x.reshape(-1, 32) for x in seen]).abs().amax(0)
    weights = [block.attn1.to_q.weight, block.attn1.to_k.weight, block.attn1.to_v.weight]
    expected = static_scale(peak, torch.cat(weights).detach().abs().amax(0), 0.11)
    got = transformer.transformer_blocks[0].attn1.to_v.transforms[0].scale
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=0)  # stored in half precision


@pytest.mark.parametrize(
    "options",
    [{"scale": False}, {"rotate": False}, {"balanced": "attention"}, {"alpha": 0.5},
     {"modulation": "fp"}, {"branches": "both"}],
    ids=str,
)  # fmt: skip
def test_every_option_changes_the_result(
    bench: tuple[nn.Module, CalibrationPool], options: dict[str, object]
) -> None:
    varied, _ = quantized(bench, **options)
    usual, _ = quantized(bench)
    assert not torch.equal(output(varied, bench[1]), output(usual, bench[1]))


def test_only_what_the_feed_forward_alone_reads_is_left_unbalanced(tmp_path: Path) -> None:
    other = make_bench("hunyuanvideo", tmp_path)
    _, _, report = other.quantize(
        ViDiTQ(), {"samples": 2, "balanced": "attention"}, "w4a4", "attention"
    )
    tokens = {entry.name: entry.transform for entry in report.layers if "norm" not in entry.name}
    left = {name for name, transform in tokens.items() if transform == "none"}
    # the single blocks' proj_mlp and proj_out share their inputs with the attention
    assert left == {
        f"transformer_blocks.0.{part}.net.{i}"
        for part in ("ff", "ff_context")
        for i in ("0.proj", "2")
    }
