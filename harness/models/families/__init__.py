"""Families of video diffusion transformers, by name and by transformer class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import HarnessError, unknown_name
from harness.models.families.cogvideox import CogVideoX
from harness.models.families.hunyuanvideo import HunyuanVideo
from harness.models.families.hunyuanvideo15 import HunyuanVideo15
from harness.models.families.latte import Latte
from harness.models.families.ltx import LTX
from harness.models.families.wan import Wan

if TYPE_CHECKING:
    from harness.models.families.base import Family

FAMILIES: dict[str, Family] = {
    known.name: known
    for known in (CogVideoX(), HunyuanVideo(), HunyuanVideo15(), Wan(), LTX(), Latte())
}
_BY_CLASS = {
    "CogVideoXTransformer3DModel": "cogvideox",
    "HunyuanVideo15Transformer3DModel": "hunyuanvideo15",
    "HunyuanVideoTransformer3DModel": "hunyuanvideo",
    "LTXVideoTransformer3DModel": "ltx",
    "LatteTransformer3DModel": "latte",
    "WanExperts": "wan",  # of harness.models.experts
    "WanTransformer3DModel": "wan",
}


def family_by_name(name: str) -> Family:
    """Look a family up.

    Raises:
        UsageError: No family has that name.
    """
    if name not in FAMILIES:
        raise unknown_name("family", name, FAMILIES)
    return FAMILIES[name]


def family_name_of(transformer_class: str) -> str:
    """Name the family of a diffusers transformer class.

    Raises:
        HarnessError: The class belongs to no family that is supported.
    """
    if transformer_class not in _BY_CLASS:
        raise HarnessError(
            f"the denoiser class '{transformer_class}' belongs to no supported family",
            f"supported classes: {', '.join(sorted(_BY_CLASS))}",
        )
    return _BY_CLASS[transformer_class]
