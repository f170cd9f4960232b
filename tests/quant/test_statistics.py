"""Statistics of the inputs of linears, over all tokens of all samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.models.block_input import BlockInput, Sample
from harness.models.families import family_by_name
from harness.models.families.base import InputGroup
from harness.quant.calibration.capture import run_block
from harness.quant.calibration.statistics import summarise_inputs

FAMILY = family_by_name("cogvideox")


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
