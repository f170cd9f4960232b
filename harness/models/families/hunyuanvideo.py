"""HunyuanVideo (arXiv 2412.03603): dual-stream blocks, then single-stream blocks.

In a dual block text and video have their own linears and meet in one attention; its two output
projections read the video and the text tokens of one tensor, to which both value projections
contribute. In a single block both streams go through the same linears, attention and MLP read the
same modulated input, and ``proj_out`` reads attention output and GELU output side by side. The
model is distilled: the guidance scale is an input, there is one branch. Text refiner, embeddings
and the output layer stay in high precision.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.models.families.base import Family, InputGroup
from harness.models.families.dual_stream import DUAL, own_modulation
from harness.models.families.fold_targets import ValueFold
from harness.models.families.latent import patch_frames, patch_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from harness.models.block_input import BlockInput
    from harness.spec import GenSpec

_SINGLE = (
    InputGroup(
        name="attn_in", role="attention_feed_forward_in", stream="both",
        linears=("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        fold=own_modulation("norm.linear", 0, chunks=3),
    ),
    InputGroup(
        name="attn_ff_out", role="attention_feed_forward_out", stream="both",
        linears=("proj_out",), fold=ValueFold(linears=("attn.to_v",), leading=True),
    ),
    InputGroup(name="modulation", role="modulation", stream="both", linears=("norm.linear",)),
)  # fmt: skip


class HunyuanVideo(Family):
    """Facts about ``HunyuanVideoTransformer3DModel``."""

    name = "hunyuanvideo"
    streams = ("hidden_states", "encoder_hidden_states")
    video_stream = "hidden_states"
    attention_order = ("hidden_states", "encoder_hidden_states")
    self_attention = "attn"
    guidance = "embedded"

    def blocks(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return ``transformer_blocks.<i>``, then ``single_transformer_blocks.<i>``."""
        return [
            (f"{part}.{i}", block)
            for part in ("transformer_blocks", "single_transformer_blocks")
            for i, block in enumerate(transformer.get_submodule(part).children())
        ]

    def groups(self, block: nn.Module) -> tuple[InputGroup, ...]:
        """Return the inputs of a dual or a single block."""
        return _SINGLE if hasattr(block, "proj_mlp") else DUAL

    def advance(
        self, transformer: nn.Module, index: int, given: BlockInput, out: dict[str, Tensor]
    ) -> BlockInput:
        """Hand the streams on; a single block calls the rotary embedding by another name."""
        following = given.with_streams(out)
        if index == len(list(transformer.get_submodule("transformer_blocks").children())) - 1:
            fixed = dict(given.fixed)
            fixed["image_rotary_emb"] = fixed.pop("freqs_cis")
            following = replace(following, fixed=fixed)
        return following

    def tokens(self, transformer: nn.Module, latent: Tensor) -> Tensor:
        """Patchify ``[1, channels, frames, height, width]``."""
        return patch_tokens(latent, _patch(transformer))

    def frames(self, transformer: nn.Module, value: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Join the latent frames of a patch."""
        del arguments
        return patch_frames(value, _patch(transformer)[0])

    def noise_shape(self, pipeline: DiffusionPipeline, gen: GenSpec) -> tuple[int, ...]:
        """Return ``[1, channels, latent_frames, height, width]``."""
        spatial = pipeline.vae_scale_factor_spatial
        frames = (gen.frames - 1) // pipeline.vae_scale_factor_temporal + 1
        channels = pipeline.transformer.config.in_channels
        return (1, channels, frames, gen.height // spatial, gen.width // spatial)

    def latents(self, pipeline: DiffusionPipeline, noise: Tensor) -> Tensor:
        """Leave them in single precision, in which the pipeline samples."""
        del pipeline
        return noise

    def arguments(self, gen: GenSpec) -> dict[str, Any]:
        """Name the frames and the length of the text after its template."""
        return {"num_frames": gen.frames, "max_sequence_length": gen.max_text_tokens}

    def encode_text(
        self, pipeline: DiffusionPipeline, text: str, gen: GenSpec
    ) -> dict[str, Tensor | None]:
        """Encode the prompt by Llama in its template, and by CLIP."""
        names = ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")
        encode: Any = pipeline.encode_prompt
        made = encode(prompt=text, max_sequence_length=gen.max_text_tokens)
        return dict(zip(names, made, strict=True))


def _patch(transformer: nn.Module) -> tuple[int, int, int]:
    config: Any = transformer.config
    return config.patch_size_t, config.patch_size, config.patch_size
