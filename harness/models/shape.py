"""How large a denoiser call is, from the JSON configs alone: tokens, widths, weights of a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.spec import GenSpec


_GLYPHS, _IMAGE = 256, 729
"""Tokens of quoted words and of an image that HunyuanVideo15Pipeline puts beside every prompt, its
``tokenizer_2_max_length`` and ``vision_num_semantic_tokens``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiserShape:
    """One call of a denoiser at a model's generation settings.

    Attributes:
        width: Channels of the token stream.
        hidden: Channels inside the feed-forward network.
        blocks: Transformer blocks.
        video_tokens: Patches of one clip.
        text_tokens: Text tokens, padding included.
        joint: The text tokens travel through the blocks beside the video's; else blocks attend to
            them.
        rows: Guidance branches that a call stacks in its batch.
        calls: Calls a step.
        rotary: Queries and keys are rotated, in single precision.
        block_weights: Weights of the linears of the largest block.
        token_weights: Those of them that every token meets, mean over the blocks.
        all_block_weights: Weights of the linears of all blocks.
        inputs: Input features of the distinct inputs of the largest block's linears.
        latent: Values of one clip's latents.
    """

    width: int
    hidden: int
    blocks: int
    video_tokens: int
    text_tokens: int
    joint: bool
    rows: int
    calls: int
    rotary: bool
    block_weights: int
    token_weights: int
    inputs: tuple[int, ...]
    latent: int
    all_block_weights: int

    @property
    def tokens(self) -> int:
        """Tokens of one row that pass through the blocks."""
        return self.video_tokens + (self.text_tokens if self.joint else 0)

    @property
    def row_flops(self) -> float:
        """Floating-point operations of one guidance branch of one denoiser evaluation.

        Two a weight and token, and four times tokens squared times width for the two products of
        an attention; embeddings, norms and modulations are left out.
        """
        keys = self.tokens * self.width
        products = 4.0 * self.tokens * keys
        if not self.joint:
            products += 4.0 * self.text_tokens * keys
        return self.blocks * (2.0 * self.token_weights * self.tokens + products)


def denoiser_shape(
    family: str, transformer: Mapping[str, Any], vae: Mapping[str, Any], gen: GenSpec
) -> DenoiserShape | None:
    """The shape of a call; None for a family, or a config, whose shape is not known here.

    Args:
        family: Name of the family.
        transformer: Config of the denoiser.
        vae: Config of the decoder.
        gen: Generation settings.
    """
    make = _SHAPES.get(family)
    if make is None:
        return None
    try:
        return make(transformer, vae, gen)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None  # what is missing or wrong there is said where the model is loaded


def _grid(gen: GenSpec, spatial: int, temporal: int, patch: tuple[int, int]) -> tuple[int, int]:
    """Patches of a clip, and latent positions of it."""
    frames = (gen.frames - 1) // temporal + 1
    frames += -frames % patch[0]
    height, width = gen.height // spatial, gen.width // spatial
    tokens = (frames // patch[0]) * (height // patch[1]) * (width // patch[1])
    return tokens, frames * height * width


def _branches(gen: GenSpec) -> int:
    return 2 if gen.guidance > 1 else 1


def _cogvideox(c: Mapping[str, Any], vae: Mapping[str, Any], gen: GenSpec) -> DenoiserShape:
    width = c["num_attention_heads"] * c["attention_head_dim"]
    spatial = 2 ** (len(vae["block_out_channels"]) - 1)
    temporal = int(vae.get("temporal_compression_ratio", 4))
    patch = (c.get("patch_size_t") or 1, c["patch_size"])
    video, latent = _grid(gen, spatial, temporal, patch)
    token = 12 * width**2  # four projections and a feed-forward network of four times the width
    return DenoiserShape(
        width=width, hidden=4 * width, blocks=c["num_layers"], video_tokens=video,
        text_tokens=gen.max_text_tokens, joint=True, rows=_branches(gen), calls=1,
        rotary=bool(c.get("use_rotary_positional_embeddings")),
        block_weights=token + 12 * width * c["time_embed_dim"], token_weights=token,
        inputs=(*(3 * (width,)), 4 * width, *(2 * (c["time_embed_dim"],))),
        latent=latent * c["in_channels"],
        all_block_weights=c["num_layers"] * (token + 12 * width * c["time_embed_dim"]),
    )  # fmt: skip


def _hunyuanvideo(c: Mapping[str, Any], vae: Mapping[str, Any], gen: GenSpec) -> DenoiserShape:
    width = c["num_attention_heads"] * c["attention_head_dim"]
    hidden = int(width * c["mlp_ratio"])
    patch = (c["patch_size_t"], c["patch_size"])
    spatial = vae.get("spatial_compression_ratio") or 8
    video, latent = _grid(gen, spatial, vae.get("temporal_compression_ratio") or 4, patch)
    dual, single = c["num_layers"], c["num_single_layers"]
    token = 4 * width**2 + 2 * width * hidden  # the same in both kinds of block
    both = (width, hidden)
    return DenoiserShape(
        width=width, hidden=hidden, blocks=dual + single, video_tokens=video,
        text_tokens=gen.max_text_tokens, joint=True, rows=1, calls=1, rotary=True,
        # two streams with a modulation of six vectors each
        block_weights=2 * token + 12 * width**2, token_weights=token,
        # of a dual block; a single block's fused output projection reads width and hidden
        inputs=(*(2 * (*both, width, width, width)),),
        latent=latent * c["in_channels"],
        # a single block has one modulation of three vectors
        all_block_weights=dual * (2 * token + 12 * width**2) + single * (token + 3 * width**2),
    )  # fmt: skip


def _hunyuanvideo15(c: Mapping[str, Any], vae: Mapping[str, Any], gen: GenSpec) -> DenoiserShape:
    width = c["num_attention_heads"] * c["attention_head_dim"]
    hidden = int(width * c["mlp_ratio"])
    patch = (c["patch_size_t"], c["patch_size"])
    spatial = vae.get("spatial_compression_ratio") or 16
    video, latent = _grid(gen, spatial, vae.get("temporal_compression_ratio") or 4, patch)
    token = 4 * width**2 + 2 * width * hidden
    block = 2 * token + 12 * width**2  # two streams with a modulation of six vectors each
    return DenoiserShape(
        width=width, hidden=hidden, blocks=c["num_layers"], video_tokens=video,
        text_tokens=gen.max_text_tokens + _GLYPHS + _IMAGE, joint=True, rows=1,
        calls=_branches(gen), rotary=True, block_weights=block, token_weights=token,
        inputs=(*(2 * (width, hidden, width, width, width)),),
        # the input holds a condition and its mask beside the latent
        latent=latent * c["out_channels"], all_block_weights=c["num_layers"] * block,
    )  # fmt: skip


def _wan(c: Mapping[str, Any], vae: Mapping[str, Any], gen: GenSpec) -> DenoiserShape:
    width, hidden = c["num_attention_heads"] * c["attention_head_dim"], c["ffn_dim"]
    patch = tuple(c["patch_size"])
    spatial = vae.get("scale_factor_spatial") or 8
    video, latent = _grid(gen, spatial, vae.get("scale_factor_temporal") or 4, patch[:2])
    token = 6 * width**2 + 2 * width * hidden  # text keys and values are met by the text alone
    return DenoiserShape(
        width=width, hidden=hidden, blocks=c["num_layers"], video_tokens=video,
        text_tokens=gen.max_text_tokens, joint=False, rows=1, calls=_branches(gen), rotary=True,
        block_weights=token + 2 * width**2, token_weights=token,
        inputs=(*(6 * (width,)), hidden), latent=latent * c["in_channels"],
        all_block_weights=c["num_layers"] * (token + 2 * width**2),
    )  # fmt: skip


def _ltx(c: Mapping[str, Any], vae: Mapping[str, Any], gen: GenSpec) -> DenoiserShape:
    width = c["num_attention_heads"] * c["attention_head_dim"]
    doublings = sum(vae["spatio_temporal_scaling"])
    spatial = vae.get("spatial_compression_ratio") or vae["patch_size"] * 2**doublings
    temporal = vae.get("temporal_compression_ratio") or vae["patch_size_t"] * 2**doublings
    video, latent = _grid(gen, spatial, temporal, (c["patch_size_t"], c["patch_size"]))
    token = 14 * width**2
    return DenoiserShape(
        width=width, hidden=4 * width, blocks=c["num_layers"], video_tokens=video,
        text_tokens=gen.max_text_tokens, joint=False, rows=_branches(gen), calls=1, rotary=True,
        block_weights=token + 2 * width * c["cross_attention_dim"], token_weights=token,
        inputs=(*(4 * (width,)), c["cross_attention_dim"], width, 4 * width),
        latent=latent * c["in_channels"],
        all_block_weights=c["num_layers"] * (token + 2 * width * c["cross_attention_dim"]),
    )  # fmt: skip


_SHAPES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], GenSpec], DenoiserShape]] = {
    "cogvideox": _cogvideox,
    "hunyuanvideo": _hunyuanvideo,
    "hunyuanvideo15": _hunyuanvideo15,
    "wan": _wan,
    "ltx": _ltx,
}
SHAPED = tuple(_SHAPES)
"""Families whose shape is known here."""
