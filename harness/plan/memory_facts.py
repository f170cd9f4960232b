"""Constants of the memory estimates: what a forward pass, a decoder and a training step hold.

None is a guess: those of forward passes and decoders follow from the models' code and were read off
a trace of every storage (``harness.measure.traced``) at the models' own sizes, on the meta device;
tests hold formula and trace together. Those of calibration are printed by
``tools/memory_bench.py``. Work space inside kernels is in none of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """Values that a block holds at its peak, in units of tokens times width.

    Attention scores are never written out. In the attention, the residual stream, its normed copy,
    queries, keys, values and their rotated copies are alive; the rotation is in single precision,
    which counts twice where the model runs in 16 bits. In the feed-forward network it is the stream
    and what it is added to, beside the hidden values before and after the activation function.

    Attributes:
        attention: In the attention.
        plain: The same without rotary embedding.
        beside: Hidden values, in units of their own width, that wait meanwhile: in a block that
            computes attention and feed-forward network side by side.
        feed_forward: In the feed-forward network, besides twice its hidden values.
        masked: In an attention that writes out a mask of tokens by tokens, besides the masks.
        masks: Copies of such a mask in bool, a byte a pair; 0 without one.
    """

    attention: float
    plain: float = 0.0
    beside: float = 0.0
    feed_forward: float = 4.1
    masked: float = 0.0
    masks: int = 0

    def values(self, ratio: float, *, rotary: bool) -> float:
        """Values a token and channel of a block whose hidden width is ``ratio`` times its width."""
        attention = (self.attention if rotary else self.plain) + self.beside * ratio
        return max(attention, self.feed_forward + 2 * ratio)

    def mask_bytes(self, tokens: int, size: int) -> int:
        """Bytes of the masks that an attention writes out; 0 for a block without one.

        ``scaled_dot_product_attention`` of torch makes another mask in the dtype of the queries. A
        kernel that pads it holds that once more, which is not counted.

        Args:
            tokens: Of one row.
            size: Bytes of a value.
        """
        return (self.masks + size) * tokens**2 if self.masks else 0


HALF = {
    "cogvideox": Activations(attention=12.95, plain=12.0, feed_forward=4.0),
    "hunyuanvideo": Activations(attention=14.2, beside=1.0, feed_forward=8.2),
    "hunyuanvideo15": Activations(attention=11.1, feed_forward=3.0, masked=6.1, masks=2),
    "wan": Activations(attention=11.1),
    "ltx": Activations(attention=16.0, feed_forward=6.0),
}
"""By family, at 16 bits."""

SINGLE = {
    "cogvideox": Activations(attention=12.0, plain=12.0, feed_forward=4.0),
    "hunyuanvideo": Activations(attention=11.1, beside=1.0, feed_forward=8.1),
    "hunyuanvideo15": Activations(attention=11.1, feed_forward=3.0, masked=6.1, masks=2),
    "wan": Activations(attention=7.6),
    "ltx": Activations(attention=11.0, feed_forward=6.0),
}
"""By family, at 32 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """Values that decoding a clip holds at its peak, for a decoder of the published width.

    Attributes:
        width: Channels at full resolution of the published decoder.
        config: Where a config says its own: key, and index in its list (-1 for a number).
        frame: A pixel of a frame: decoders that work through the clip some frames at a time.
        clip: A pixel of every frame: decoders that take the whole clip at once.
        output: A pixel of every frame, whatever is decoded at a time: the clip and its copies.
        joining: A pixel of every frame while tiles are blended, in place of all others.
        tile: Pixels of a tile, where tiling is on.
    """

    width: int
    config: tuple[str, int]
    frame: float = 0.0
    clip: float = 0.0
    output: float = 3.0
    joining: float = 0.0
    tile: int = 256 * 256

    def values(self, pixels: int, frames: int, width: int, *, tiled: bool) -> float:
        """Values at the peak.

        Args:
            pixels: Of a frame.
            frames: Of the clip.
            width: Channels at full resolution of this decoder.
            tiled: Whether tiling is on.
        """
        at_once = min(pixels, self.tile) if tiled else pixels
        scale = width / self.width
        peak = scale * (self.frame + self.clip * frames) * at_once + self.output * pixels * frames
        return max(peak, self.joining * pixels * frames if tiled else 0.0)


DECODERS = {
    "AutoencoderKLCogVideoX": Decoder(
        width=128, config=("block_out_channels", 0), frame=22_890, output=2.5, tile=240 * 360
    ),
    "AutoencoderKLHunyuanVideo": Decoder(
        width=128, config=("block_out_channels", 0), frame=19_620, output=4.0
    ),
    "AutoencoderKLHunyuanVideo15": Decoder(  # at 16 bits; at 32 a seventh less is held
        width=128, config=("block_out_channels", 0), clip=898, output=3.9
    ),
    "AutoencoderKLWan": Decoder(
        width=96, config=("base_dim", -1), frame=4_865, output=4.1, joining=14.0
    ),
    "AutoencoderKLLTXVideo": Decoder(
        width=128, config=("decoder_block_out_channels", 0), clip=50.1, output=0.0, tile=512 * 512
    ),
}
"""By class of the decoder."""

TRAINED_VALUES = 14.5
"""float32 values a token and channel that one training step of a block keeps."""
TRAINED_WEIGHTS = 4.2
"""float32 copies of a block's weights in training: own, transformed, rounded, gradients."""

HESSIAN_BYTES = 12
"""A value of a second moment: its float32 sum, and the float64 matrix that is made of it."""
ROUNDING_COPIES = 6
"""float32 copies of the largest linear while it is rounded: mapped, scaled, codes, errors."""

SIMULATED_INPUT = 1.0
"""Copies of a linear's input, in its dtype, while it is rounded in simulated inference."""
SIMULATED_WORK = 150_000_000
"""What is in work beside it: at most 2^24 values in float32, twice, and unpacked codes."""
SIMULATED_OVERHEAD_BITS = 0.1
"""Bits a weight of steps and zero points, beside those of its codes."""

PROCESS_BYTES = 900_000_000
"""Resident bytes of a worker that has imported torch, diffusers and transformers."""

MARGIN = 0.2
"""How far an estimate may be off: tests hold it to this against measured peaks."""

LANE_BITS, HALF_LANE_BITS = 8, 4
"""Bits a weight takes as a kernel multiplies it: a lane, or half of one."""
