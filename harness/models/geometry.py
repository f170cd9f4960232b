"""Which clips a model can make, and how many tokens its denoiser sees of one.

A VAE joins pixels and frames, the denoiser cuts what is left into patches. What they cannot make
ends in an error of every row, or is rounded by the pipeline without a word; here it is refused
before, with the nearest values that can be made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.models.description import Description
    from harness.spec import GenSpec

LATTE_TEXT = 120  # LattePipeline.encode_prompt of diffusers 0.42.1 knows no other
WAN_TEXT = 512  # text_len of Wan-Video/Wan2.1, wan/configs/shared_config.py
HUNYUAN15_TEXT = 1000  # tokenizer_max_length of HunyuanVideo15Pipeline, diffusers 0.42.1
_HUNYUAN_TEMPLATE = 95  # crop_start of HunyuanVideoPipeline's prompt template


@dataclass(frozen=True, kw_only=True, slots=True)
class Factors:
    """How a family makes tokens of a clip.

    Attributes:
        spatial: Pixels of a side to one latent.
        temporal: Frames to one latent frame behind the first, which stands alone; 0 where the VAE
            leaves the frames alone.
        patch: Latents of a side to one token.
        patch_frames: Latent frames to one token.
        pairs: Whether the VAE decodes latent frames behind the first two at a time: an odd one out
            becomes as many frames as two, and the clip is longer than asked.
        padded: Whether the pipeline fills latent frames up to whole patches and cuts the clip.
        pipeline: What the pipeline itself wants height and width to be divided by.
        frames: The only other number of frames than 1, None for any.
        text: Least and most text tokens.
    """

    spatial: int
    temporal: int
    patch: int
    patch_frames: int = 1
    pairs: bool = False
    padded: bool = False
    pipeline: int
    frames: int | None = None
    text: tuple[int, int] = (1, 1 << 20)

    @property
    def unit(self) -> int:
        """What height and width are divided by."""
        return math.lcm(self.spatial * self.patch, self.pipeline)

    @property
    def frame_step(self) -> int:
        """Frames behind the first come in multiples of so many; 0 where the VAE leaves them."""
        return self.temporal * (2 if self.pairs else 1)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of so many frames, filled up where the pipeline does that."""
        latent = (frames - 1) // self.temporal + 1 if self.temporal else frames
        return latent + (-latent % self.patch_frames if self.padded else 0)

    def video_tokens(self, gen: GenSpec) -> int:
        """Video tokens of one guidance branch."""
        side = self.spatial * self.patch
        return (
            self.latent_frames(gen.frames) // self.patch_frames
            * (gen.height // side) * (gen.width // side)
        )  # fmt: skip


def factors(description: Description) -> Factors:
    """The factors of a pipeline, from its configs.

    Raises:
        HarnessError: A config cannot be meant.
        KeyError: The class of the pipeline is not sampled.
    """
    return FACTORS[description.pipeline](description)


def check_gen(description: Description, gen: GenSpec) -> None:
    """Refuse a clip that the model cannot make.

    Raises:
        UsageError: Height, width, frames or text tokens are not among those that it can; says
            which are nearest.
        HarnessError: A config cannot be meant.
    """
    known = factors(description)
    for what, value in (("height", gen.height), ("width", gen.width)):
        if value % known.unit:
            raise _refusal(
                description, f"{what} {value}",
                f"a multiple of {known.unit} pixels", _around(value, known.unit, 0), what,
            )  # fmt: skip
    if known.frames is not None and gen.frames not in (1, known.frames):
        raise _refusal(
            description, f"{gen.frames} frames",
            f"{known.frames} frames, for which its positions are made, or 1", [known.frames],
            "frames",
        )  # fmt: skip
    if known.frame_step and (gen.frames - 1) % known.frame_step:
        raise _refusal(
            description, f"{gen.frames} frames",
            f"{known.frame_step} k + 1 frames", _around(gen.frames, known.frame_step, 1), "frames",
        )  # fmt: skip
    if known.latent_frames(gen.frames) % known.patch_frames:
        step = known.patch_frames * max(known.temporal, 1)
        raise _refusal(
            description, f"{gen.frames} frames",
            f"whole patches of {known.patch_frames} latent frames",
            _around(gen.frames, step, (known.patch_frames - 1) * known.temporal + 1), "frames",
        )  # fmt: skip
    least, most = known.text
    if not least <= gen.max_text_tokens <= most:
        can = f"{most} text tokens" if least == most else f"at most {most} text tokens"
        raise _refusal(
            description, f"{gen.max_text_tokens} text tokens", can, [most], "max_text_tokens"
        )


def _around(value: int, step: int, offset: int) -> list[int]:
    """The nearest values of the form ``step k + offset``, at least one step or the offset."""
    below = (value - offset) // step * step + offset
    return [near for near in (below, below + step) if near > 0]


def _refusal(
    description: Description, given: str, can: str, near: list[int], setting: str
) -> UsageError:
    choice = " or ".join(f"{setting} = {value}" for value in near)
    return UsageError(
        f"model '{description.name}' cannot make clips of {given}: it makes {can}",
        f"set {choice} in [gen]",
    )


def _cogvideox(description: Description) -> Factors:
    text = description.number("transformer.max_text_seq_length", 226)
    # positions that are added stand for the text too, whose length is then fixed
    rotary = description.fact("transformer.use_rotary_positional_embeddings") is True
    patch_frames = description.number("transformer.patch_size_t", 1)
    return Factors(
        spatial=2 ** (description.count("vae.block_out_channels", 4) - 1),
        temporal=description.number("vae.temporal_compression_ratio", 4),
        patch=description.number("transformer.patch_size", 2),
        patch_frames=patch_frames,
        pairs=True,  # num_latent_frames_batch_size of AutoencoderKLCogVideoX
        padded=patch_frames > 1,
        pipeline=8,
        text=(1 if rotary else text, text),
    )


def _hunyuanvideo(description: Description) -> Factors:
    return Factors(
        spatial=description.number("vae.spatial_compression_ratio", 8),
        temporal=description.number("vae.temporal_compression_ratio", 4),
        patch=description.number("transformer.patch_size", 2),
        patch_frames=description.number("transformer.patch_size_t", 1),
        pipeline=16,
        text=(
            1,
            description.number("text_encoder.max_position_embeddings", 8192) - _HUNYUAN_TEMPLATE,
        ),
    )


def _hunyuanvideo15(description: Description) -> Factors:
    spatial = description.number("vae.spatial_compression_ratio", 16)
    return Factors(
        spatial=spatial,
        temporal=description.number("vae.temporal_compression_ratio", 4),
        patch=description.number("transformer.patch_size", 1),
        patch_frames=description.number("transformer.patch_size_t", 1),
        pipeline=spatial,
        text=(1, HUNYUAN15_TEXT),
    )


def _wan(description: Description) -> Factors:
    patch = description.fact("transformer.patch_size") or (1, 2, 2)
    whole = isinstance(patch, (list, tuple)) and len(patch) == 3
    if not whole or not all(isinstance(side, int) and side > 0 for side in patch):
        raise description.wrong("transformer.patch_size", "is not three positive integers")
    return Factors(
        spatial=description.number("vae.scale_factor_spatial", 8),
        temporal=description.number("vae.scale_factor_temporal", 4),
        patch=math.lcm(*patch[1:]),
        patch_frames=patch[0],
        pipeline=16,
        text=(1, WAN_TEXT),
    )


def _ltx(description: Description) -> Factors:
    default = (True, True, True, False)  # of AutoencoderKLLTXVideo
    scaling = description.fact("vae.spatio_temporal_scaling") or default
    if not isinstance(scaling, (list, tuple)):
        raise description.wrong("vae.spatio_temporal_scaling", "is no list")
    times = 2 ** sum(map(bool, scaling))
    return Factors(
        spatial=description.number(
            "vae.spatial_compression_ratio", description.number("vae.patch_size", 4) * times
        ),
        temporal=description.number(
            "vae.temporal_compression_ratio", description.number("vae.patch_size_t", 1) * times
        ),
        patch=description.number("transformer.patch_size", 1),
        patch_frames=description.number("transformer.patch_size_t", 1),
        pipeline=32,
    )


def _latte(description: Description) -> Factors:
    return Factors(
        spatial=2 ** (description.count("vae.block_out_channels", 4) - 1),
        temporal=0,
        patch=description.number("transformer.patch_size", 2),
        pipeline=8,
        frames=description.number("transformer.video_length", 16),
        text=(LATTE_TEXT, LATTE_TEXT),
    )


FACTORS: Mapping[str, Callable[[Description], Factors]] = {
    "CogVideoXPipeline": _cogvideox,
    "HunyuanVideo15Pipeline": _hunyuanvideo15,
    "HunyuanVideoPipeline": _hunyuanvideo,
    "LTXPipeline": _ltx,
    "LattePipeline": _latte,
    "WanPipeline": _wan,
}
