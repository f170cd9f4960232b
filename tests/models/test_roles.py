"""What every family says of its inputs and linears, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.models.families import FAMILIES
from harness.models.families.base import InputGroup
from harness.testing.miniatures import MINIATURES

if TYPE_CHECKING:
    from torch import nn

Row = tuple[str, str, str, str]
"""Role, linear, what it makes, tokens that it reads."""

JOINT = [
    ("attention_in", "attn1.to_q", "query", "both"),
    ("attention_in", "attn1.to_k", "key", "both"),
    ("attention_in", "attn1.to_v", "value", "both"),
    ("attention_out", "attn1.to_out.0", "attention_out", "both"),
    ("feed_forward_in", "ff.net.0.proj", "feed_forward_in", "both"),
    ("feed_forward_out", "ff.net.2", "feed_forward_out", "both"),
    ("modulation", "norm1.linear", "modulation", "both"),
    ("modulation", "norm2.linear", "modulation", "both"),
]
DUAL = [
    ("attention_in", "attn.to_q", "query", "video"),
    ("attention_in", "attn.to_k", "key", "video"),
    ("attention_in", "attn.to_v", "value", "video"),
    ("attention_in", "attn.add_q_proj", "query", "text"),
    ("attention_in", "attn.add_k_proj", "key", "text"),
    ("attention_in", "attn.add_v_proj", "value", "text"),
    ("attention_out", "attn.to_out.0", "attention_out", "video"),
    ("attention_out", "attn.to_add_out", "attention_out", "text"),
    ("feed_forward_in", "ff.net.0.proj", "feed_forward_in", "video"),
    ("feed_forward_out", "ff.net.2", "feed_forward_out", "video"),
    ("feed_forward_in", "ff_context.net.0.proj", "feed_forward_in", "text"),
    ("feed_forward_out", "ff_context.net.2", "feed_forward_out", "text"),
    ("modulation", "norm1.linear", "modulation", "video"),
    ("modulation", "norm1_context.linear", "modulation", "text"),
]
SINGLE = [
    ("attention_feed_forward_in", "attn.to_q", "query", "both"),
    ("attention_feed_forward_in", "attn.to_k", "key", "both"),
    ("attention_feed_forward_in", "attn.to_v", "value", "both"),
    ("attention_feed_forward_in", "proj_mlp", "feed_forward_in", "both"),
    ("attention_feed_forward_out", "proj_out", "attention_feed_forward_out", "both"),
    ("modulation", "norm.linear", "modulation", "both"),
]
SELF = [
    ("attention_in", "attn1.to_q", "query", "video"),
    ("attention_in", "attn1.to_k", "key", "video"),
    ("attention_in", "attn1.to_v", "value", "video"),
    ("attention_out", "attn1.to_out.0", "attention_out", "video"),
]
TEXT = [
    ("cross_attention_query", "attn2.to_q", "query", "video"),
    ("cross_attention_text", "attn2.to_k", "key", "text"),
    ("cross_attention_text", "attn2.to_v", "value", "text"),
]
IMAGE = [
    ("cross_attention_image", "attn2.add_k_proj", "key", "image"),
    ("cross_attention_image", "attn2.add_v_proj", "value", "image"),
]
CROSS_OUT = [("cross_attention_out", "attn2.to_out.0", "attention_out", "video")]
FF = [
    ("feed_forward_in", "ff.net.0.proj", "feed_forward_in", "video"),
    ("feed_forward_out", "ff.net.2", "feed_forward_out", "video"),
]
WAN_FF = [
    ("feed_forward_in", "ffn.net.0.proj", "feed_forward_in", "video"),
    ("feed_forward_out", "ffn.net.2", "feed_forward_out", "video"),
]
BLOCKS: dict[str, dict[str, list[Row]]] = {
    "cogvideox": {"transformer_blocks": JOINT},
    "hunyuanvideo": {"transformer_blocks": DUAL, "single_transformer_blocks": SINGLE},
    "hunyuanvideo15": {"transformer_blocks": DUAL},
    "wan": {"blocks": [*SELF, *TEXT, *CROSS_OUT, *WAN_FF]},
    "ltx": {"transformer_blocks": [*SELF, *TEXT, *CROSS_OUT, *FF]},
    "latte": {
        "transformer_blocks": [*SELF, *TEXT, *CROSS_OUT, *FF],
        "temporal_transformer_blocks": [*SELF, *FF],
    },
}


def table(name: str, block: nn.Module) -> list[Row]:
    """All that the family says of a block's linears, in its order."""
    return [
        (group.role, linear, group.purpose(linear), group.stream_of(linear))
        for group in FAMILIES[name].groups(block)
        for linear in group.linears
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_of_a_family_is_what_the_table_says(name: str) -> None:
    blocks = FAMILIES[name].blocks(MINIATURES[name]().transformer)
    assert {n.partition(".")[0] for n, _ in blocks} == set(BLOCKS[name])
    for place, block in blocks:
        assert table(name, block) == BLOCKS[name][place.partition(".")[0]]


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_attention_of_lattes_temporal_blocks_is_temporal(name: str) -> None:
    for place, block in FAMILIES[name].blocks(MINIATURES[name]().transformer):
        temporal = {g.role for g in FAMILIES[name].groups(block) if g.temporal}
        latte = name == "latte" and place.startswith("temporal_transformer_blocks")
        assert temporal == ({"attention_in", "attention_out"} if latte else set())


def test_an_image_conditioned_wan_names_what_reads_the_image() -> None:
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock

    block = WanTransformerBlock(32, 48, 2, cross_attn_norm=True, added_kv_proj_dim=32)
    assert table("wan", block) == [*SELF, *TEXT, *IMAGE, *CROSS_OUT, *WAN_FF]


def test_modulation_is_a_role() -> None:
    def group(role: str) -> InputGroup:
        return InputGroup(name="x", role=role, linears=("x",))  # type: ignore[arg-type]

    assert group("modulation").modulation
    assert not group("feed_forward_in").modulation


def test_a_role_with_another_number_of_linears_is_refused() -> None:
    with pytest.raises(ValueError, match="has 2 linears, its role attention_in has 3: query, key"):
        InputGroup(name="attn_in", role="attention_in", linears=("to_q", "to_k"))


def test_a_linear_is_found_by_its_qualified_name_and_another_is_refused() -> None:
    group = InputGroup(
        name="text", role="cross_attention_text", stream="text", linears=("attn2.to_k", "to_v")
    )
    assert group.purpose("blocks.0.attn2.to_k") == "key"
    assert group.stream_of("blocks.0.to_v") == "text"
    with pytest.raises(ValueError, match=r"attn1\.to_k' is no linear"):
        group.purpose("blocks.0.attn1.to_k")
    with pytest.raises(ValueError, match="no linear"):
        group.stream_of("not_to_v")
