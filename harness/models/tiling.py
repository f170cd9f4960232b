"""Whether a clip is decoded tile by tile: one rule for all rows, settled at planning."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.models.families.base import Family
    from harness.spec import GenSpec

UNTILED = 1 << 23
"""Most places of the decoder's widest feature maps that are computed at once without tiling.

A choice of this project, by memory: the decoders of CogVideoX and HunyuanVideo have 128 channels at
full resolution, so one feature map of that many places takes 2 GiB at 16 bits, and a residual block
holds several. CogVideoX's own clip, 49 x 480 x 720, is twice as large, and HunyuanVideo's 14 times;
the scripts of both groups tile. Wan's decoder goes frame by frame and stays below, as does Latte's.
"""


def tiles(gen: GenSpec, family: Family) -> bool:
    """Whether the decoder tiles: as the settings say, else by the bound."""
    if gen.vae_tiling is not None:
        return gen.vae_tiling
    return family.decoded_at_once(gen) > UNTILED


def with_tiling(gen: GenSpec, family: Family) -> GenSpec:
    """The settings with the tiling spelled out."""
    return replace(gen, vae_tiling=tiles(gen, family))


def before_decoding(gen: GenSpec) -> GenSpec:
    """The settings that latents depend on: tiling another way leaves artifacts and pools alone."""
    return replace(gen, vae_tiling=None)
