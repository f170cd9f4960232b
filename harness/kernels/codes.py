"""Integer codes of an input, in lanes of 8 bits, by the arithmetic of the simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from harness.quant.layers.activation import activation_grid
from harness.quant.layers.grid import Affine, affine, code_range

if TYPE_CHECKING:
    from torch import Tensor

    from harness.quant.layers.activation import ActivationSpec

LANE_OFFSET = 128
"""What is taken off an unsigned 8-bit code, and its zero point, so that it fits a signed lane."""

_CHUNK = 1 << 18
"""Values rounded at a time: in float32 a megabyte, which stays in a core's second cache."""


class InputCodes(NamedTuple):
    """A rounded input: ``x = (values - zero) * scale``.

    Attributes:
        values: int8 ``[tokens, in_features]``.
        scale: float32 ``[tokens, 1]``, or ``[1, 1]`` of a static grid.
        zero: float32 in the shape of ``scale``, None on a symmetric grid.
    """

    values: Tensor
    scale: Tensor
    zero: Tensor | None

    def values_of(self, dtype: torch.dtype) -> Tensor:
        """The input on its grid, ``[tokens, in_features]``, as the simulation has it."""
        wide = self.values.to(self.scale.dtype)
        if self.zero is not None:
            wide.sub_(self.zero)
        return wide.mul_(self.scale).to(dtype)


def offset(bits: int, *, symmetric: bool) -> int:
    """What codes of a grid are moved by to fit an 8-bit lane."""
    return LANE_OFFSET if bits == 8 and not symmetric else 0


def input_codes(x: Tensor, spec: ActivationSpec) -> InputCodes:
    """Round an input to its codes.

    The codes are those of the simulation, ``harness.quant.layers.activation``: the same operations
    in the same order, in place and some tokens at a time.

    Args:
        x: ``[tokens, in_features]``, any float dtype.
        spec: Dynamic by token, or static; no groups; 2 to 8 bits.
    """
    tokens, width = x.shape
    shift = offset(spec.bits, symmetric=spec.symmetric)
    wide = torch.promote_types(x.dtype, torch.float32)
    values = torch.empty(tokens, width, dtype=torch.int8, device=x.device)
    rows = 1 if spec.is_static else tokens
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    zero = None if spec.symmetric else torch.empty_like(scale)
    step = max(1, _CHUNK // width) if x.device.type == "cpu" else max(1, tokens)
    work = torch.empty(min(step, tokens), width, dtype=wide, device=x.device)
    for start in range(0, tokens, step):
        part = work[: min(step, tokens - start)]
        part.copy_(x[start : start + step])
        grid = _grid(part, spec)
        _encode_(part, grid, spec)
        values[start : start + step] = part.sub_(shift) if shift else part
        place = slice(0, 1) if spec.is_static else slice(start, start + step)
        scale[place] = grid.scale
        if zero is not None and grid.zero is not None:
            zero[place] = grid.zero - shift
    return InputCodes(values, scale, zero)


def _grid(x: Tensor, spec: ActivationSpec) -> Affine:
    """``activation_grid`` of the simulation, its commonest case without a copy of ``x``."""
    if _reaches_its_ends(spec):
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        return affine(low, high, spec.bits, symmetric=True)
    return activation_grid(x, spec)


def _encode_(x: Tensor, grid: Affine, spec: ActivationSpec) -> None:
    """``encode`` of the simulation, in place."""
    x.div_(grid.scale).round_()
    if grid.zero is not None:
        x.add_(grid.zero)
    if not _reaches_its_ends(spec):
        x.clamp_(*code_range(spec.bits, grid.zero is None))


def _reaches_its_ends(spec: ActivationSpec) -> bool:
    """Whether the range is that of the values themselves, around zero: no code lies outside."""
    return spec.symmetric and not spec.is_static and spec.clip_low == spec.clip_high == 1.0
