"""Latte (arXiv 2401.03048): spatial and temporal blocks in turn, adaLN-single.

A spatial block attends within a frame and to the text, the temporal block after it within a
position: frames, then positions are folded into the batch. All blocks share one modulation, to
which each adds a table of its own. The cross-attention's query reads the residual stream without a
norm, its keys and values the text that is embedded once for all blocks. Embeddings, the shared
modulation and the output layer stay in high precision.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.models.families.base import Family, InputGroup
from harness.models.families.fold_targets import TableFold, ValueFold
from harness.models.families.latent import patch_frames, patch_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from harness.models.block_input import BlockInput
    from harness.spec import GenSpec


def _modulated(shift: int) -> TableFold:
    return TableFold(
        argument="timestep", table="scale_shift_table", rows=6, pair=(shift, shift + 1)
    )


_SPATIAL = (
    InputGroup(
        name="attn_in", role="attention_in",
        linears=("attn1.to_q", "attn1.to_k", "attn1.to_v"), fold=_modulated(0),
    ),
    InputGroup(
        name="attn_out", role="attention_out", linears=("attn1.to_out.0",),
        fold=ValueFold(linears=("attn1.to_v",)),
    ),
)  # fmt: skip
_TEMPORAL = tuple(replace(group, temporal=True) for group in _SPATIAL)
_CROSS = (
    InputGroup(name="cross_q_in", role="cross_attention_query", linears=("attn2.to_q",)),
    InputGroup(
        name="cross_text_in", role="cross_attention_text", stream="text",
        linears=("attn2.to_k", "attn2.to_v"),
    ),
    InputGroup(
        name="cross_out", role="cross_attention_out", linears=("attn2.to_out.0",),
        fold=ValueFold(linears=("attn2.to_v",)),
    ),
)  # fmt: skip
_FF = (
    InputGroup(
        name="ff_in", role="feed_forward_in", linears=("ff.net.0.proj",), fold=_modulated(3)
    ),
    InputGroup(name="ff_out", role="feed_forward_out", linears=("ff.net.2",)),
)


class Latte(Family):
    """Facts about ``LatteTransformer3DModel``."""

    name = "latte"
    streams = ("hidden_states",)
    video_stream = "hidden_states"
    attention_order = ("hidden_states",)
    self_attention = "attn1"
    guidance = "stacked"
    text_cleaners = ("beautifulsoup4", "ftfy")  # LattePipeline's _clean_caption

    def blocks(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return ``transformer_blocks.<i>`` and ``temporal_transformer_blocks.<i>`` in turn."""
        parts = ("transformer_blocks", "temporal_transformer_blocks")
        pairs = zip(*(transformer.get_submodule(p).children() for p in parts), strict=True)
        return [
            (f"{part}.{i}", block)
            for i, pair in enumerate(pairs)
            for part, block in zip(parts, pair, strict=True)
        ]

    def groups(self, block: nn.Module) -> tuple[InputGroup, ...]:
        """Return the inputs of a spatial or a temporal block; the latter has no cross-attention."""
        if getattr(block, "attn2", None) is None:
            return (*_TEMPORAL, *_FF)
        return (*_SPATIAL, *_CROSS, *_FF)

    def advance(
        self, transformer: nn.Module, index: int, given: BlockInput, out: dict[str, Tensor]
    ) -> BlockInput:
        """Turn frames of positions into positions of frames, or back.

        A temporal block is given the text once a branch; it does not read it.
        """
        hidden, text = out["hidden_states"], given.fixed["encoder_hidden_states"]
        rows, tokens = given.rows, hidden.shape[1]
        turned = hidden.unflatten(0, (-1, rows)).transpose(1, 2).flatten(0, 1)
        if index % 2 == 0:
            if index == 0 and rows > 1:
                position: Any = transformer.temp_pos_embed
                turned = turned + position.to(hidden.dtype)
            text = text[::rows]
        else:
            text = text.repeat_interleave(tokens, 0)
        time = given.fixed["timestep"][::rows].repeat_interleave(tokens, 0)
        fixed = {**given.fixed, "encoder_hidden_states": text, "timestep": time}
        return replace(given, streams={"hidden_states": turned}, fixed=fixed, rows=tokens)

    def tokens(self, transformer: nn.Module, latent: Tensor) -> Tensor:
        """Patchify ``[1, channels, frames, height, width]``."""
        config: Any = transformer.config
        return patch_tokens(latent, (1, config.patch_size, config.patch_size))

    def frames(self, transformer: nn.Module, value: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Put frames before channels."""
        del transformer, arguments
        return patch_frames(value, 1)

    def noise_shape(self, pipeline: DiffusionPipeline, gen: GenSpec) -> tuple[int, ...]:
        """Return ``[1, channels, frames, height, width]``; the VAE leaves the frames alone."""
        spatial, channels = pipeline.vae_scale_factor, pipeline.transformer.config.in_channels
        return (1, channels, gen.frames, gen.height // spatial, gen.width // spatial)

    def latents(self, pipeline: DiffusionPipeline, noise: Tensor) -> Tensor:
        """Cast to the denoiser's dtype, which the pipeline keeps."""
        return noise.to(pipeline.transformer.dtype)

    def arguments(self, gen: GenSpec) -> dict[str, Any]:
        """Name the frames; embeddings are masked already, and come without a negative text."""
        return {"video_length": gen.frames, "negative_prompt": None, "mask_feature": False}

    def encode_text(
        self, pipeline: DiffusionPipeline, text: str, gen: GenSpec
    ) -> dict[str, Tensor | None]:
        """Encode prompt and negative prompt by T5, after cleaning, 120 tokens each at most."""
        encode: Any = pipeline.encode_prompt
        made = encode(
            prompt=text,
            negative_prompt=gen.negative_prompt,
            do_classifier_free_guidance=gen.guidance > 1,
            clean_caption=True,
        )
        return dict(zip(("prompt_embeds", "negative_prompt_embeds"), made, strict=True))
