"""HunyuanVideo-1.5 (arXiv 2511.18870): dual-stream blocks only, the scale in a guider component.

The text is that of three encoders in one sequence: image tokens, glyphs that the prompt quotes
(ByT5), and the prompt (Qwen2.5-VL). What of it is padding, and the image tokens of a clip from text
alone, neither see nor are seen. The denoiser's input is the latent with a condition of zeros beside
it. Text refiner, embeddings and the output layer stay in high precision.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models.families.base import Family, InputGroup
from harness.models.families.dual_stream import DUAL
from harness.models.families.latent import patch_frames, patch_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from harness.spec import GenSpec

_TEXTS = {
    "encoder_hidden_states": "encoder_attention_mask",
    "encoder_hidden_states_2": "encoder_attention_mask_2",
}
"""Text arguments of the denoiser and the masks of their tokens."""

_ENCODED = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")
"""What ``encode_prompt`` returns, by the pipeline's arguments."""


class HunyuanVideo15(Family):
    """Facts about ``HunyuanVideo15Transformer3DModel``."""

    name = "hunyuanvideo15"
    streams = ("hidden_states", "encoder_hidden_states")
    video_stream = "hidden_states"
    attention_order = ("hidden_states", "encoder_hidden_states")
    self_attention = "attn"
    guidance = "calls"

    def blocks(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return ``transformer_blocks.<i>``."""
        blocks = transformer.get_submodule("transformer_blocks").children()
        return [(f"transformer_blocks.{i}", block) for i, block in enumerate(blocks)]

    def groups(self, block: nn.Module) -> tuple[InputGroup, ...]:
        """Return the inputs of a dual block."""
        del block
        return DUAL

    def tokens(self, transformer: nn.Module, latent: Tensor) -> Tensor:
        """Patchify ``[1, channels, frames, height, width]``."""
        return patch_tokens(latent, _patch(transformer))

    def frames(self, transformer: nn.Module, value: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Join the latent frames of a patch."""
        del arguments
        return patch_frames(value, _patch(transformer)[0])

    def noise_shape(self, pipeline: DiffusionPipeline, gen: GenSpec) -> tuple[int, ...]:
        """Return ``[1, channels, latent_frames, height, width]``, without the condition."""
        spatial = pipeline.vae_scale_factor_spatial
        frames = (gen.frames - 1) // pipeline.vae_scale_factor_temporal + 1
        channels = pipeline.transformer.config.out_channels
        return (1, channels, frames, gen.height // spatial, gen.width // spatial)

    def latents(self, pipeline: DiffusionPipeline, noise: Tensor) -> Tensor:
        """Cast to the denoiser's dtype, as the pipeline does."""
        return noise.to(pipeline.transformer.dtype)

    def arguments(self, gen: GenSpec) -> dict[str, Any]:
        """Name the frames; the length of the text is no argument of the call."""
        return {"num_frames": gen.frames}

    def encode_text(
        self, pipeline: DiffusionPipeline, text: str, gen: GenSpec
    ) -> dict[str, Tensor | None]:
        """Encode prompt and negative prompt by Qwen2.5-VL, and what they quote by ByT5."""
        texts = {"": text} | ({} if gen.guidance == 1 else {"negative_": gen.negative_prompt})
        own, encode = pipeline.tokenizer_max_length, pipeline.encode_prompt
        pipeline.tokenizer_max_length = gen.max_text_tokens
        try:
            made = {branch: encode(prompt=given) for branch, given in texts.items()}
        finally:
            pipeline.tokenizer_max_length = own
        return {
            f"{branch}{name}": value
            for branch, values in made.items()
            for name, value in zip(_ENCODED, values, strict=True)
        }

    def latent_channels(self, transformer: nn.Module) -> int | None:
        """As many as the denoiser predicts; condition and mask follow."""
        config: Any = transformer.config
        channels: int = config.out_channels
        return channels

    def trimmed(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out image tokens and text that no branch has."""
        kept = dict(arguments)
        for text, mask in _TEXTS.items():
            seen = kept[mask].bool().any(0)
            kept[text], kept[mask] = kept[text][:, seen], kept[mask][:, seen]
        # the denoiser takes an image of zeros for none and hides its tokens
        if not kept["image_embeds"].any():
            kept["image_embeds"] = kept["image_embeds"][:, :0]
        return kept

    @contextmanager
    def sampling(
        self, pipeline: DiffusionPipeline, gen: GenSpec, on_step: Callable[[int, Tensor], None]
    ) -> Iterator[dict[str, Any]]:
        """Set the guider of the pipeline, and see its steps where it takes them."""
        guider, scheduler = pipeline.guider, pipeline.scheduler
        replaced, take, steps = vars(scheduler).get("step"), scheduler.step, 0

        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            out = take(*args, **kwargs)
            on_step(steps, out[0])
            steps += 1
            return out

        pipeline.guider = _guider(guider, gen.guidance)
        scheduler.step = step
        try:
            yield {}
        finally:
            pipeline.guider = guider
            # a bound method left in the instance would go on with this scheduler in a copy of it
            del scheduler.step
            if replaced is not None:
                scheduler.step = replaced


def _guider(given: Any, scale: float) -> Any:
    """The pipeline's guider at a scale.

    Raises:
        HarnessError: It is not the plain guidance of both branches at every step.
    """
    config = given.config
    plain = type(given).__name__ == "ClassifierFreeGuidance" and not config.use_original_formulation
    whole = config.get("start") == 0 and config.get("stop") == 1
    if not plain or not whole or not (config.enabled or scale == 1):
        raise HarnessError(
            f"the pipeline's guider is {type(given).__name__} with {dict(config)}: its branches "
            "are not the two of every step that are recorded and quantized",
            "use a ClassifierFreeGuidance that is enabled, from start 0 to stop 1; or guidance = 1",
        )
    guider = copy.copy(given)
    guider.guidance_scale = scale
    return guider


def _patch(transformer: nn.Module) -> tuple[int, int, int]:
    config: Any = transformer.config
    return config.patch_size_t, config.patch_size, config.patch_size
