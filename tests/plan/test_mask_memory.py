"""Memory of blocks whose attention writes out a mask of tokens by tokens: HunyuanVideo-1.5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.measure.traced import PeakTensors, traced_peak
from harness.plan.memory import BYTES, Sizes, activation_bytes, block_bytes, sizes_of
from harness.spec import GenSpec
from tests.plan.test_memory import empty, meta, part


def hunyuan15(height: int, width: int, frames: int, dtype: str) -> tuple[Any, Sizes]:
    """A denoiser of one block of HunyuanVideo-1.5, and its sizes."""
    import diffusers

    denoiser = meta(diffusers.HunyuanVideo15Transformer3DModel, getattr(torch, dtype), num_layers=1)
    with torch.device("meta"):
        vae = diffusers.AutoencoderKLHunyuanVideo15()
    gen = GenSpec(
        height=height, width=width, frames=frames, fps=24, steps=50, guidance=6.0, dtype=dtype,
        max_text_tokens=1000,
    )  # fmt: skip
    sizes = sizes_of("hunyuanvideo15", gen, [part("transformer", denoiser), part("vae", vae)])
    assert sizes is not None
    return denoiser, sizes


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("video", "text"), [(111_600, 1985), (49_290, 1985), (300, 1)])
def test_a_block_that_masks_tokens_by_tokens_holds_its_masks(video: int, text: int, dtype: str):
    # its denoiser sorts tokens by the values of their mask, which the meta device does not have
    denoiser, sizes = hunyuan15(720, 1280, 121, dtype)
    kind = getattr(torch, dtype)
    rope = tuple(empty(video, 128, dtype=torch.float32) for _ in range(2))
    given = (
        empty(1, video, 2048, dtype=kind), empty(1, text, 2048, dtype=kind),
        empty(1, 2048, dtype=kind), empty(1, text, dtype=torch.bool),
    )  # fmt: skip
    block = denoiser.transformer_blocks[0]
    traced = traced_peak(lambda: block(*given, rope))
    additive = BYTES[dtype] * (video + text) ** 2 if video > 1000 else 0  # within the attention
    assert block_bytes(sizes, video + text) - additive == pytest.approx(traced, rel=0.1)


def test_an_attention_makes_a_mask_in_the_dtype_of_its_queries():
    q = torch.zeros(1, 2, 64, 16, dtype=torch.bfloat16)
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool)

    def held(given: Tensor | None) -> int:
        with torch.no_grad(), PeakTensors() as memory:
            torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=given)
        return int(memory.peak)

    assert held(mask) - held(None) == 2 * 64 * 64


def test_the_masks_of_hunyuanvideo15_are_most_of_a_step_at_720p():
    _, sizes = hunyuan15(720, 1280, 121, "bfloat16")
    tokens = 31 * 45 * 80 + 1000 + 256 + 729
    assert sizes.shape.tokens == tokens
    assert (sizes.shape.rows, sizes.shape.calls) == (1, 2)
    assert activation_bytes(sizes) > 4 * tokens**2 > 51 * 10**9
