"""A low-rank branch beside a rounded linear, in high precision.

SVDQuant (arXiv 2411.05007) takes the largest singular directions of the weight out of the rounding;
Q-VDiT's token-aware estimator (arXiv 2505.22167) adds a rank-1 correction behind it, with one gain
a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """``z -> (gain * z) down^T up^T``.

    Args:
        down: ``[rank, in_features]``; of a loaded layer in half precision where that is exact.
        up: ``[out_features, rank]``.
        rounded: Whether z is the layer's input after the rounding (Q-VDiT) or the transformed input
            before it (SVDQuant).
        gain: ``[frames]``, on the tokens of each frame; None for none.
        text_tokens: Tokens that come before the frames and have gain 1; negative where so many come
            behind them.
    """

    down: Tensor
    up: Tensor
    gain: Tensor | None

    def __init__(
        self,
        down: Tensor,
        up: Tensor,
        *,
        rounded: bool,
        gain: Tensor | None = None,
        text_tokens: int = 0,
    ) -> None:
        super().__init__()
        if down.shape[0] != up.shape[1]:
            raise ValueError(f"ranks differ: down {tuple(down.shape)}, up {tuple(up.shape)}")
        self.rounded = rounded
        self.text_tokens = text_tokens
        # not cloned: linears that read one input may hold the same down-projection
        self.register_buffer("down", down.detach())
        self.register_buffer("up", up.detach())
        self.register_buffer("gain", None if gain is None else gain.detach())

    @property
    def rank(self) -> int:
        """Rank of the branch."""
        return self.down.shape[0]

    def forward(self, z: Tensor) -> Tensor:
        """Branch output, ``[..., tokens, in_features]`` to ``[..., tokens, out_features]``.

        Raises:
            ValueError: There is a gain and the tokens are no whole number of frames.
        """
        inner = nn.functional.linear(z, self.down.to(z.dtype))
        if self.gain is not None:
            gains = token_gains(self.gain.float(), z.shape[-2], self.text_tokens)
            inner = inner * gains[:, None].to(z.dtype)
        return nn.functional.linear(inner, self.up.to(z.dtype))


def token_gains(gain: Tensor, tokens: int, text_tokens: int) -> Tensor:
    """Gain of every token ``[tokens]``: that of its frame, 1 for text.

    Args:
        gain: ``[frames]``.
        tokens: Text and video tokens; those of a frame are contiguous.
        text_tokens: Of them before the frames, or, negative, behind the frames.

    Raises:
        ValueError: The tokens are no whole number of frames.
    """
    video = tokens - abs(text_tokens)
    if video <= 0 or video % gain.numel():
        raise ValueError(
            f"{tokens} tokens are not {abs(text_tokens)} text tokens and {gain.numel()} frames"
        )
    text, frames = gain.new_ones(abs(text_tokens)), gain.repeat_interleave(video // gain.numel())
    return torch.cat([frames, text] if text_tokens < 0 else [text, frames])
