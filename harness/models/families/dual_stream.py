"""The dual-stream block that HunyuanVideo and HunyuanVideo-1.5 share.

Text and video have their own linears and meet in one attention; its two output projections read
the video and the text tokens of one tensor, to which both value projections contribute.
"""

from __future__ import annotations

from harness.models.families.base import InputGroup
from harness.models.families.fold_targets import ModulationFold, ValueFold

_VIDEO, _TEXT = "norm1.linear", "norm1_context.linear"


def own_modulation(linear: str, shift: int, *, chunks: int = 6) -> ModulationFold:
    """Fold into a stream's own modulation.

    Args:
        linear: The modulation linear.
        shift: Chunk of the shift; the scale follows it.
        chunks: Chunks of the modulation.
    """
    return ModulationFold(linear=linear, chunks=chunks, pairs=((shift, shift + 1),))


DUAL = (
    InputGroup(
        name="attn_in", role="attention_in", linears=("attn.to_q", "attn.to_k", "attn.to_v"),
        fold=own_modulation(_VIDEO, 0),
    ),
    InputGroup(
        name="text_attn_in", role="attention_in", stream="text",
        linears=("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        fold=own_modulation(_TEXT, 0),
    ),
    InputGroup(
        name="attn_out", role="attention_out", stream="both", split=True,
        linears=("attn.to_out.0", "attn.to_add_out"),
        fold=ValueFold(linears=("attn.to_v", "attn.add_v_proj")),
    ),
    InputGroup(
        name="ff_in", role="feed_forward_in", linears=("ff.net.0.proj",),
        fold=own_modulation(_VIDEO, 3),
    ),
    InputGroup(name="ff_out", role="feed_forward_out", linears=("ff.net.2",)),
    InputGroup(
        name="text_ff_in", role="feed_forward_in", stream="text",
        linears=("ff_context.net.0.proj",), fold=own_modulation(_TEXT, 3),
    ),
    InputGroup(
        name="text_ff_out", role="feed_forward_out", stream="text", linears=("ff_context.net.2",)
    ),
    InputGroup(name="modulation", role="modulation", linears=(_VIDEO,)),
    InputGroup(name="text_modulation", role="modulation", stream="text", linears=(_TEXT,)),
)  # fmt: skip
"""Input groups of a dual block."""
