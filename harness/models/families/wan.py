"""Wan 2.1 and 2.2 (arXiv 2503.20314): cross-attention to text, adaLN-single.

All blocks share one modulation, to which each adds a table of its own; norms and modulation are
computed in single precision. The guidance branches are two calls, the conditional one first. The
text that the cross-attention reads is embedded once for all blocks, so that a scale of it stays
online. Wan 2.2 A14B has two such denoisers, of which the second runs the steps of low noise.
Embeddings, the shared modulation and the output layer stay in high precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.models.families.base import Family, InputGroup, both_branches
from harness.models.families.fold_targets import NormFold, TableFold, ValueFold
from harness.models.families.latent import patch_frames, patch_tokens
from harness.models.families.parts import parts_of, prefix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from harness.spec import GenSpec


def _modulated(shift: int) -> TableFold:
    return TableFold(
        argument="temb", table="scale_shift_table", rows=6, pair=(shift, shift + 1), upcast=True
    )


_SELF = (
    InputGroup(
        name="attn_in", role="attention_in",
        linears=("attn1.to_q", "attn1.to_k", "attn1.to_v"), fold=_modulated(0),
    ),
    InputGroup(
        name="attn_out", role="attention_out", linears=("attn1.to_out.0",),
        fold=ValueFold(linears=("attn1.to_v",)),
    ),
)  # fmt: skip
_TEXT = InputGroup(
    name="cross_text_in", role="cross_attention_text", stream="text",
    linears=("attn2.to_k", "attn2.to_v"),
)  # fmt: skip
_IMAGE = InputGroup(
    name="cross_image_in", role="cross_attention_image", stream="image",
    linears=("attn2.add_k_proj", "attn2.add_v_proj"),
)  # fmt: skip
_FF = (
    InputGroup(
        name="ff_in", role="feed_forward_in", linears=("ffn.net.0.proj",), fold=_modulated(3)
    ),
    InputGroup(name="ff_out", role="feed_forward_out", linears=("ffn.net.2",)),
)


class Wan(Family):
    """Facts about ``WanTransformer3DModel``."""

    name = "wan"
    streams = ("hidden_states",)
    video_stream = "hidden_states"
    attention_order = ("hidden_states",)
    self_attention = "attn1"
    guidance = "calls"
    single_precision = ("vae",)  # as in the example of diffusers' WanPipeline
    text_cleaners = ("ftfy",)  # WanPipeline's basic_clean

    def blocks(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return ``blocks.<i>``; of two experts those of the first, then those of the second."""
        return [
            (f"{prefix(name)}blocks.{i}", block)
            for name, part in parts_of(transformer).items()
            for i, block in enumerate(part.get_submodule("blocks").children())
        ]

    def groups(self, block: nn.Module) -> tuple[InputGroup, ...]:
        """Return the inputs of a block; an image-conditioned one reads image tokens too."""
        # without cross_attn_norm an identity stands there
        affine = getattr(block.norm2, "weight", None) is not None
        values: tuple[str, ...] = ("attn2.to_v",)
        image: tuple[InputGroup, ...] = ()
        if getattr(block.attn2, "add_k_proj", None) is not None:
            values, image = ("attn2.to_v", "attn2.add_v_proj"), (_IMAGE,)
        query = InputGroup(
            name="cross_q_in", role="cross_attention_query", linears=("attn2.to_q",),
            fold=NormFold(norm="norm2") if affine else None,
        )  # fmt: skip
        out = InputGroup(
            name="cross_out", role="cross_attention_out", linears=("attn2.to_out.0",),
            fold=ValueFold(linears=values),
        )  # fmt: skip
        return (*_SELF, query, _TEXT, *image, out, *_FF)

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
        """Name the frames, the length of the text, and the scale of the second expert."""
        own = {"num_frames": gen.frames, "max_sequence_length": gen.max_text_tokens}
        return own if gen.guidance_2 is None else {**own, "guidance_scale_2": gen.guidance_2}

    def encode_text(
        self, pipeline: DiffusionPipeline, text: str, gen: GenSpec
    ) -> dict[str, Tensor | None]:
        """Encode prompt and negative prompt by UMT5, after cleaning."""
        return both_branches(pipeline, text, gen, ("prompt_embeds", "negative_prompt_embeds"))

    def decoded_at_once(self, gen: GenSpec) -> int:
        """Four frames: ``AutoencoderKLWan._decode`` takes one latent frame after the other."""
        return 4 * gen.height * gen.width


def _patch(transformer: nn.Module) -> tuple[int, int, int]:
    config: Any = transformer.config
    t, p, q = config.patch_size
    return t, p, q
