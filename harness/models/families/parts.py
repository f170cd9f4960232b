"""The networks that one denoiser consists of: itself, or experts that take turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

EXPERTS = "expert_names"
"""Attribute of a denoiser of several networks: their names, in the order in which they serve."""


def parts_of(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The networks of a denoiser, by the name under which they are its submodules.

    Returns:
        One entry with an empty name where the denoiser is one network.
    """
    names: tuple[str, ...] = getattr(denoiser, EXPERTS, ())
    return {name: denoiser.get_submodule(name) for name in names or ("",)}


def prefix(part: str) -> str:
    """What stands before the names of a part's modules among those of the whole denoiser."""
    return f"{part}." if part else ""
