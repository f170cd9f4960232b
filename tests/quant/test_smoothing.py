"""Smoothing: the scale against a loop, statistics over all tokens, the function unchanged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.models.block_input import BlockInput, Sample
from harness.models.families import family_by_name
from harness.models.families.base import InputGroup, linear_at
from harness.quant.calibration.capture import run_block
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import WeightSpec, quantize_linear
from harness.quant.rounding.smoothing import apply_scale_, smoothing_scale, summarise_inputs

FAMILY = family_by_name("cogvideox")


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0, 1), channels=st.integers(1, 9))
def test_the_scale_is_the_ratio_of_powers_of_the_maxima(
    seed: int, alpha: float, channels: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(7, channels, generator=draw) * 10 ** torch.randn(channels, generator=draw)
    w = torch.randn(5, channels, generator=draw)
    got = smoothing_scale(x.abs().amax(0), w.abs().amax(0), alpha).tolist()
    for j in range(channels):
        largest_x = max(abs(float(x[i, j])) for i in range(7))
        largest_w = max(abs(float(w[i, j])) for i in range(5))
        assert got[j] == pytest.approx(largest_x**alpha / largest_w ** (1 - alpha), rel=1e-5)


def test_a_channel_without_activation_or_weight_keeps_its_size() -> None:
    scale = smoothing_scale(torch.tensor([0.0, 4.0, 4.0]), torch.tensor([1.0, 0.0, 1.0]), 0.5)
    assert scale.tolist() == [1.0, 1.0, 2.0]


def block_and_inputs() -> tuple[nn.Module, list[BlockInput]]:
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

    torch.manual_seed(0)
    block = CogVideoXBlock(32, 2, 16, 24, attention_bias=True).eval().requires_grad_(False)
    for value in block.parameters():
        nn.init.normal_(value, std=0.2)
    inputs = [
        BlockInput(
            sample=Sample(0, i),
            streams={
                "hidden_states": torch.randn(1, 10, 32),
                "encoder_hidden_states": torch.randn(1, 4, 32),
            },
            fixed={"temb": torch.randn(1, 24)},
        )
        for i in range(3)
    ]
    return block, inputs


def seen_by(block: nn.Module, name: str, inputs: list[BlockInput]) -> Tensor:
    seen: list[Tensor] = []
    linear = block.get_submodule(name)
    handle = linear.register_forward_pre_hook(lambda m, args: seen.append(args[0].flatten(0, -2)))
    for given_ in inputs:
        run_block(block, FAMILY, given_)
    handle.remove()
    return torch.cat(seen)


def test_the_statistics_are_those_of_all_tokens() -> None:
    block, inputs = block_and_inputs()
    groups = [g for g in FAMILY.groups(block) if not g.modulation]
    found = summarise_inputs(
        block, FAMILY, groups, inputs,
        tokens=12, second_moment=True, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert set(found) == {linear for g in groups for linear in g.linears}
    assert found["attn1.to_q"] is found["attn1.to_v"]
    for name in ("attn1.to_k", "ff.net.2"):
        x, summary = seen_by(block, name, inputs), found[name]
        assert summary.count == len(x) == 42
        assert torch.equal(summary.peak, x.abs().amax(0))
        torch.testing.assert_close(summary.total / summary.count, x.abs().mean(0))
        torch.testing.assert_close(summary.second_moment().float(), 2 * x.T @ x / len(x))
        kept = summary.tokens()
        assert kept.shape == (12, x.shape[1])
        places = [int((x == row).all(1).nonzero()[0]) for row in kept]
        assert len(set(places)) == 12
        assert all(sum(p // 14 == i for p in places) == 4 for i in range(3))


def test_the_streams_of_a_split_group_stay_apart() -> None:
    block, inputs = block_and_inputs()
    names = ("attn1.to_q", "ff.net.0.proj")
    split = InputGroup(name="both", role="attention_out", linears=names, split=True)
    found = summarise_inputs(
        block, FAMILY, [split], inputs,
        tokens=0, second_moment=False, generator=torch.Generator(),
    )  # fmt: skip
    for name in split.linears:
        assert torch.equal(found[name].peak, seen_by(block, name, inputs).abs().amax(0))
    assert not torch.equal(found["attn1.to_q"].peak, found["ff.net.0.proj"].peak)
    with pytest.raises(ValueError, match="no second moment"):
        found["attn1.to_q"].second_moment()


def test_smoothing_leaves_the_function_of_the_block_unchanged() -> None:
    block, inputs = block_and_inputs()
    before = [run_block(block, FAMILY, given_) for given_ in inputs]
    groups = [g for g in FAMILY.groups(block) if not g.modulation]
    draw = torch.Generator().manual_seed(1)
    online = {}
    for group in groups:
        width = linear_at(block, group.linears[0]).in_features
        online[group.name] = apply_scale_(block, group, torch.rand(width, generator=draw) * 9 + 0.1)
    assert [bool(online[g.name]) for g in groups] == [g.fold is None for g in groups]
    keep = WeightSpec(bits=16), ActivationSpec(bits=16)
    for group in groups:
        for name in group.linears:
            layer = quantize_linear(linear_at(block, name), *keep, transforms=online[group.name])
            replace_module_(block, name, layer)
    for given_, expected in zip(inputs, before, strict=True):
        after = run_block(block, FAMILY, given_)
        for name, value in expected.items():
            torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-4)
