"""LTX-Video (Lightricks/LTX-Video): cross-attention to text, adaLN-single.

All blocks share one modulation, to which each adds a table of its own. The cross-attention's query
reads the residual stream without a norm, its keys and values the text that is embedded once for all
blocks: neither input has a producer that could take a block's scale. Latents travel packed, one
token a latent position. Embeddings, the shared modulation and the output layer stay in high
precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.models.families.base import Family, InputGroup, both_branches
from harness.models.families.fold_targets import TableFold, ValueFold
from harness.models.families.latent import patch_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from harness.spec import GenSpec


def _modulated(shift: int) -> TableFold:
    return TableFold(argument="temb", table="scale_shift_table", rows=6, pair=(shift, shift + 1))


_GROUPS = (
    InputGroup(
        name="attn_in", role="attention_in",
        linears=("attn1.to_q", "attn1.to_k", "attn1.to_v"), fold=_modulated(0),
    ),
    InputGroup(
        name="attn_out", role="attention_out", linears=("attn1.to_out.0",),
        fold=ValueFold(linears=("attn1.to_v",)),
    ),
    InputGroup(name="cross_q_in", role="cross_attention_query", linears=("attn2.to_q",)),
    InputGroup(
        name="cross_text_in", role="cross_attention_text", stream="text",
        linears=("attn2.to_k", "attn2.to_v"),
    ),
    InputGroup(
        name="cross_out", role="cross_attention_out", linears=("attn2.to_out.0",),
        fold=ValueFold(linears=("attn2.to_v",)),
    ),
    InputGroup(
        name="ff_in", role="feed_forward_in", linears=("ff.net.0.proj",), fold=_modulated(3)
    ),
    InputGroup(name="ff_out", role="feed_forward_out", linears=("ff.net.2",)),
)  # fmt: skip


class LTX(Family):
    """Facts about ``LTXVideoTransformer3DModel``."""

    name = "ltx"
    streams = ("hidden_states",)
    video_stream = "hidden_states"
    attention_order = ("hidden_states",)
    self_attention = "attn1"
    guidance = "stacked"

    def blocks(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return ``transformer_blocks.<i>``."""
        blocks = transformer.get_submodule("transformer_blocks").children()
        return [(f"transformer_blocks.{i}", block) for i, block in enumerate(blocks)]

    def groups(self, block: nn.Module) -> tuple[InputGroup, ...]:
        """Return the inputs of a block."""
        del block
        return _GROUPS

    def tokens(self, transformer: nn.Module, latent: Tensor) -> Tensor:
        """Take the packed latent ``[1, tokens, features]`` as it is."""
        del transformer
        return latent[0]

    def frames(self, transformer: nn.Module, value: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Cut the packed tokens into frames."""
        del transformer
        return value.reshape(value.shape[0], arguments["num_frames"], -1)

    def noise_shape(self, pipeline: DiffusionPipeline, gen: GenSpec) -> tuple[int, ...]:
        """Return ``[1, channels, latent_frames, height, width]``, not packed yet."""
        spatial = pipeline.vae_spatial_compression_ratio
        frames = (gen.frames - 1) // pipeline.vae_temporal_compression_ratio + 1
        channels = pipeline.transformer.config.in_channels
        return (1, channels, frames, gen.height // spatial, gen.width // spatial)

    def latents(self, pipeline: DiffusionPipeline, noise: Tensor) -> Tensor:
        """Pack them; the pipeline samples in single precision."""
        config = pipeline.transformer.config
        patch = (config.patch_size_t, config.patch_size, config.patch_size)
        return patch_tokens(noise, patch)[None]

    def arguments(self, gen: GenSpec) -> dict[str, Any]:
        """Name frames, frame rate (it scales the positions) and the length of the text."""
        return {
            "num_frames": gen.frames,
            "frame_rate": gen.fps,
            "max_sequence_length": gen.max_text_tokens,
        }

    def encode_text(
        self, pipeline: DiffusionPipeline, text: str, gen: GenSpec
    ) -> dict[str, Tensor | None]:
        """Encode prompt and negative prompt by T5."""
        own = ("prompt_embeds", "prompt_attention_mask")
        names = (*own, *(f"negative_{name}" for name in own))
        return both_branches(pipeline, text, gen, names)

    def decoded_at_once(self, gen: GenSpec) -> int:
        """A sixteenth of the pixels: the last layer makes patches of 4 x 4 of them."""
        return gen.frames * gen.height * gen.width // 16
