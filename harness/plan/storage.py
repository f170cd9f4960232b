"""Bytes of a denoiser on disk at a width, counted from its config alone.

Two ways of counting stand side by side. *Ours* is what an artifact of rounding to nearest holds:
packed codes of every target linear, a step in half precision for each output channel or group, and
all else in 16 bits. *The papers'* has steps in single precision: it gives the storage that
S2Q-VDiT prints (arXiv 2508.04016, table 5) to 0.1 %, for both models that are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

GIB = 2**30
HALF, SINGLE = 2, 4
"""Bytes of a value in 16 and in 32 bits."""

WIDTHS = (8, 6, 4)
GROUPS = (64, 128)


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What a paper prints of a model.

    Attributes:
        parameters: Of the denoiser, by which the model is known; it is exact.
        full: GiB in 16 bits.
        low: GiB at 4-bit weights.
        source: Paper and table.
    """

    parameters: int
    full: float
    low: float
    source: str


_S2Q = "S2Q-VDiT, arXiv 2508.04016, table 5"
PUBLISHED = (
    Published(parameters=5_570_283_072, full=10.375, low=2.633, source=_S2Q),  # CogVideoX-5B
    Published(parameters=12_821_012_544, full=23.881, low=6.494, source=_S2Q),  # HunyuanVideo
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Linears:
    """What of a denoiser is quantized.

    Attributes:
        parameters: All of the denoiser.
        shapes: ``(out_features, in_features)`` of every target linear.
    """

    parameters: int
    shapes: tuple[tuple[int, int], ...]

    @property
    def weights(self) -> int:
        """Weights of the target linears."""
        return sum(rows * columns for rows, columns in self.shapes)

    def full_bytes(self) -> int:
        """Everything in 16 bits."""
        return HALF * self.parameters

    def bytes_at(self, bits: int, *, group: int = 0, step: int = HALF) -> int:
        """Codes, steps, and what stays in 16 bits.

        Args:
            bits: Width of the codes.
            group: Input channels that share a step, at most; 0 for one each output channel.
            step: Bytes of a step.
        """
        from harness.quant.layers.group_size import fitting_group

        codes = steps = 0
        for rows, columns in self.shapes:
            codes += -(-rows * columns * bits // 8)
            steps += rows * (columns // (fitting_group(columns, group) or columns))
        return codes + step * steps + HALF * (self.parameters - self.weights)


def linears_of(class_name: str, config: Mapping[str, Any], family: str) -> Linears:
    """Count a denoiser by building it without weights.

    Args:
        class_name: Class of diffusers.
        config: Its config.
        family: Name of its family.

    Raises:
        HarnessError: The class does not take the config.
    """
    import torch

    from harness.models.families import family_by_name
    from harness.models.families.base import linear_at, target_linears
    from harness.models.skeleton import empty_denoiser

    built = empty_denoiser(class_name, config, torch.bfloat16)
    found = [linear_at(built, name) for name in target_linears(family_by_name(family), built)]
    return Linears(
        parameters=sum(p.numel() for p in built.parameters()),
        shapes=tuple((one.out_features, one.in_features) for one in found),
    )


def storage_rows(linears: Linears) -> list[tuple[str, str, str]]:
    """Rows of a sheet: what is stored, its size, and its ratio to 16 bits."""
    full = linears.full_bytes()
    share = f"{linears.weights / linears.parameters:.1%} of the parameters are target linears"
    rows = [("16 bits", _size(full), share)]
    for bits in WIDTHS:
        rows.append(_row(f"w{bits}", linears.bytes_at(bits), full))
    for group in GROUPS:
        rows.append(_row(f"w4, groups of {group}", linears.bytes_at(4, group=group), full))
    known = next((p for p in PUBLISHED if p.parameters == linears.parameters), None)
    if known is not None:
        counted = linears.bytes_at(4, step=SINGLE)
        off = counted / GIB / known.low - 1
        told = f"{known.low} GiB in {known.source}: {off:+.2%}"
        rows.append(("w4, steps in 32 bits", _size(counted), told))
    return rows


def _row(name: str, count: int, full: int) -> tuple[str, str, str]:
    return name, _size(count), f"{full / count:.2f}x smaller"


def _size(count: int) -> str:
    return f"{count / GIB:.3f} GiB" if count >= GIB // 10 else f"{count / 2**20:.2f} MiB"
