"""CogVideoX (arXiv 2408.06072): one joint stream of text and video tokens through shared linears.

Both norms of a block emit shift, scale and gate for video (chunks 0-2) and text (chunks 3-5) from
one modulation linear; the LayerNorm between is affine and shared by both, so it is never scaled
itself. CogVideoX1.5 embeds two latent frames as one patch: its pipeline denoises a latent frame
more than the clip has where their number is odd, and drops the first before decoding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.models.families.base import Family, InputGroup, both_branches
from harness.models.families.fold_targets import ModulationFold, ValueFold

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from harness.spec import GenSpec

_PAIRS = ((0, 1), (3, 4))


class CogVideoX(Family):
    """Facts about ``CogVideoXTransformer3DModel``."""

    name = "cogvideox"
    streams = ("hidden_states", "encoder_hidden_states")
    video_stream = "hidden_states"
    attention_order = ("encoder_hidden_states", "hidden_states")
    self_attention = "attn1"
    guidance = "stacked"

    def blocks(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return ``transformer_blocks.<i>``."""
        blocks = transformer.get_submodule("transformer_blocks").children()
        return [(f"transformer_blocks.{i}", block) for i, block in enumerate(blocks)]

    def groups(self, block: nn.Module) -> tuple[InputGroup, ...]:
        """Return the four token inputs and the two modulation inputs of a block."""
        del block
        return (
            InputGroup(
                name="attn_in",
                role="attention_in",
                stream="both",
                linears=("attn1.to_q", "attn1.to_k", "attn1.to_v"),
                fold=ModulationFold(linear="norm1.linear", chunks=6, pairs=_PAIRS),
            ),
            InputGroup(
                name="attn_out",
                role="attention_out",
                stream="both",
                linears=("attn1.to_out.0",),
                fold=ValueFold(linears=("attn1.to_v",)),
            ),
            InputGroup(
                name="ff_in",
                role="feed_forward_in",
                stream="both",
                linears=("ff.net.0.proj",),
                fold=ModulationFold(linear="norm2.linear", chunks=6, pairs=_PAIRS),
            ),
            InputGroup(
                name="ff_out", role="feed_forward_out", stream="both", linears=("ff.net.2",)
            ),
            InputGroup(
                name="modulation1", role="modulation", stream="both", linears=("norm1.linear",)
            ),
            InputGroup(
                name="modulation2", role="modulation", stream="both", linears=("norm2.linear",)
            ),
        )

    def tokens(self, transformer: nn.Module, latent: Tensor) -> Tensor:
        """Patchify ``[1, frames, channels, height, width]``."""
        config: Any = transformer.config
        p, t = config.patch_size, config.patch_size_t or 1
        _, frames, channels, height, width = latent.shape
        grid = latent.reshape(frames // t, t, channels, height // p, p, width // p, p)
        return grid.permute(0, 3, 5, 2, 1, 4, 6).reshape(-1, channels * t * p * p)

    def frames(self, transformer: nn.Module, value: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Join the latent frames of a patch; frames already stand before channels."""
        del arguments
        config: Any = transformer.config
        batch, frames = value.shape[:2]
        return value.reshape(batch, frames // (config.patch_size_t or 1), -1)

    def noise_shape(self, pipeline: DiffusionPipeline, gen: GenSpec) -> tuple[int, ...]:
        """Return ``[1, latent_frames, channels, height, width]``, frames in whole patches."""
        config = pipeline.transformer.config
        spatial = pipeline.vae_scale_factor_spatial
        frames = (gen.frames - 1) // pipeline.vae_scale_factor_temporal + 1
        if config.patch_size_t is not None:
            frames += -frames % config.patch_size_t
        return (1, frames, config.in_channels, gen.height // spatial, gen.width // spatial)

    def latents(self, pipeline: DiffusionPipeline, noise: Tensor) -> Tensor:
        """Cast to the denoiser's dtype, which the pipeline keeps."""
        return noise.to(pipeline.transformer.dtype)

    def arguments(self, gen: GenSpec) -> dict[str, Any]:
        """Name the frames and the length of the text."""
        return {"num_frames": gen.frames, "max_sequence_length": gen.max_text_tokens}

    def encode_text(
        self, pipeline: DiffusionPipeline, text: str, gen: GenSpec
    ) -> dict[str, Tensor | None]:
        """Encode prompt and negative prompt by T5."""
        return both_branches(pipeline, text, gen, ("prompt_embeds", "negative_prompt_embeds"))
