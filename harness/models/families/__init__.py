"""Families of video diffusion transformers, by name and by transformer class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import HarnessError, unknown_name
from harness.models.families.cogvideox import CogVideoX

if TYPE_CHECKING:
    from harness.models.families.base import Family

FAMILIES: dict[str, Family] = {"cogvideox": CogVideoX()}
_BY_CLASS = {"CogVideoXTransformer3DModel": "cogvideox"}


def family(name: str) -> Family:
    """Look a family up.

    Raises:
        UsageError: No family has that name.
    """
    if name not in FAMILIES:
        raise unknown_name("family", name, FAMILIES)
    return FAMILIES[name]


def family_of_class(transformer_class: str) -> str:
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
