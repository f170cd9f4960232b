"""Cutting latents ``[batch, channels, frames, height, width]`` as a denoiser embeds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def patch_tokens(latent: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Cut a latent into its patches.

    Args:
        latent: ``[1, channels, frames, height, width]``.
        patch: Frames, rows and columns of a patch.

    Returns:
        ``[tokens, channels * patch]``, frame by frame.
    """
    _, channels, frames, height, width = latent.shape
    t, p, q = patch
    grid = latent.reshape(channels, frames // t, t, height // p, p, width // q, q)
    return grid.permute(1, 3, 5, 0, 2, 4, 6).reshape(-1, channels * t * p * q)


def patch_frames(value: Tensor, extent: int) -> Tensor:
    """Join the latent frames that share a patch.

    Args:
        value: ``[batch, channels, frames, height, width]``.
        extent: Frames of a patch.

    Returns:
        ``[batch, frames / extent, features]``.
    """
    batch, _, frames = value.shape[:3]
    return value.transpose(1, 2).reshape(batch, frames // extent, -1)
