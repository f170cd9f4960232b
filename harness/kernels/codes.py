"""Integer codes of an input, in lanes of 8 bits, by the arithmetic of the simulation."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from harness.kernels.fused import fused, is_worth_it
from harness.quant.layers.activation import activation_grid
from harness.quant.layers.grid import SCALE_FLOOR, Affine, affine, code_range

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
    if is_worth_it(x):
        return _fused_codes(x, spec)
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


def _fused_codes(x: Tensor, spec: ActivationSpec) -> InputCodes:
    """``input_codes`` by compiled functions.

    They take numbers as tensors, so that four serve all widths, clips and static ranges.
    """
    shift = offset(spec.bits, symmetric=spec.symmetric)
    bottom, top = code_range(spec.bits, spec.symmetric)
    wide = torch.promote_types(x.dtype, torch.float32)
    low, high, less = _numbers(bottom, top, shift, dtype=wide)
    if spec.is_static:
        grid = activation_grid(x[:1].to(wide), spec)
        zero = grid.scale.new_zeros(()) if grid.zero is None else grid.zero
        values = fused(_round_fixed)(x, grid.scale, zero, low, high, less)
        moved = None if grid.zero is None else (zero - shift).float().view(1, 1)
        return InputCodes(values, grid.scale.float().view(1, 1), moved)
    clips = _numbers(spec.clip_low, spec.clip_high, dtype=wide)
    if _reaches_its_ends(spec):
        values, scale = fused(_round_to_its_ends)(x, high)
        return InputCodes(values, scale, None)
    if spec.symmetric:
        values, scale = fused(_round_symmetric)(x, *clips, low, high)
        return InputCodes(values, scale, None)
    values, scale, zero = fused(_round_asymmetric)(x, *clips, high, less)
    return InputCodes(values, scale, zero)


@lru_cache(maxsize=256)
def _numbers(*values: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    with torch.inference_mode(False):
        return tuple(torch.tensor(value, dtype=dtype) for value in values)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _round_to_its_ends(x: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    wide = _wide(x)
    scale = (wide.abs().amax(-1, keepdim=True) / top).clamp_min(SCALE_FLOOR)
    return (wide / scale).round().to(torch.int8), scale.float()


def _round_symmetric(
    x: Tensor, clip_low: Tensor, clip_high: Tensor, bottom: Tensor, top: Tensor
) -> tuple[Tensor, Tensor]:
    wide = _wide(x)
    low, high = wide.amin(-1, keepdim=True) * clip_low, wide.amax(-1, keepdim=True) * clip_high
    scale = (torch.maximum(low.abs(), high.abs()) / top).clamp_min(SCALE_FLOOR)
    codes = (wide / scale).round().clamp(bottom, top)
    return codes.to(torch.int8), scale.float()


def _round_asymmetric(
    x: Tensor, clip_low: Tensor, clip_high: Tensor, top: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    wide = _wide(x)
    low = (wide.amin(-1, keepdim=True) * clip_low).clamp_max(0)
    high = (wide.amax(-1, keepdim=True) * clip_high).clamp_min(0)
    scale = ((high - low) / top).clamp_min(SCALE_FLOOR)
    bottom = torch.zeros_like(top)
    zero = (-low / scale).round().clamp(bottom, top)
    codes = ((wide / scale).round() + zero).clamp(bottom, top) - shift
    return codes.to(torch.int8), scale.float(), (zero - shift).float()


def _round_fixed(
    x: Tensor, scale: Tensor, zero: Tensor, bottom: Tensor, top: Tensor, shift: Tensor
) -> Tensor:
    codes = ((_wide(x) / scale).round() + zero).clamp(bottom, top) - shift
    return codes.to(torch.int8)


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


def values_of(codes: InputCodes, dtype: torch.dtype) -> Tensor:
    """The input on its grid, ``[tokens, in_features]``, as the simulation has it."""
    wide = codes.values.to(codes.scale.dtype)
    if codes.zero is not None:
        wide.sub_(codes.zero)
    return wide.mul_(codes.scale).to(dtype)
