"""Inputs of the x86 kernel: transformed, rounded and laid out, a token at a time."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from harness.kernels.contract import ReadInput, wants_exact
from harness.kernels.x86 import library
from harness.kernels.x86.threads import in_parts
from harness.quant.layers.activation import activation_grid, in_chunks
from harness.quant.layers.grid import code_range
from harness.quant.layers.hadamard import held_factors
from harness.quant.layers.transform import ChannelScale, Hadamard, Kronecker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.quant.layers.activation import ActivationSpec
    from harness.quant.layers.linear import QuantLinear

TILE, SIDE = 64, 32
"""Channels of a tile; tokens, or output channels, of a block (lanes.h)."""

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_SCALE, _HADAMARD, _KRONECKER = 0, 1, 2
_VECTOR = 16
_LANE_BITS, _LANE_OFFSET = 8, 128


class RowLanes(NamedTuple):
    """A rounded input; ``x = (lanes - zeros) * steps``.

    Attributes:
        lanes: uint8 ``[blocks, segments, tiles, 32, 64]``, signed lanes where tile units multiply;
            of the last block only the tokens that there are mean something.
        steps: float32 ``[tokens, segments]``, ``[tokens, 1]`` without groups, ``[1, 1]`` of a fixed
            range.
        zeros: int32 in the shape of ``steps``; None where all are ``zero``.
        sums: int32 ``[tokens, segments]`` of the lanes, None where no weight asks for them.
        zero: See there.
        tokens: How many there are.
        segment: Channels that start a tile of their own.
    """

    lanes: Tensor
    steps: Tensor
    zeros: Tensor | None
    sums: Tensor | None
    zero: int
    tokens: int
    segment: int

    def values_of(self, dtype: torch.dtype) -> Tensor:
        """The input on its grid, ``[tokens, in_features]``, as the simulation has it."""
        signed = self.lanes.view(torch.int8) if library.tile_units() else self.lanes
        blocks, segments = self.lanes.shape[:2]
        rows = signed.permute(0, 3, 1, 2, 4).reshape(blocks * SIDE, segments, -1)
        wide = rows[: self.tokens, :, : self.segment].float()
        wide -= self.zero if self.zeros is None else self.zeros.float()[:, :, None]
        return (wide * self.steps[:, :, None]).reshape(self.tokens, -1).to(dtype)


def segment_of(layer: QuantLinear) -> int:
    """Channels of a layer that share all their steps, those of the weight and of the input."""
    width = layer.in_features
    return math.gcd(layer.weight_spec.group or width, layer.activation_spec.group or width)


class RowReader:
    """Transforms and rounds inputs ``[..., tokens, in_features]``.

    Sums of a rotation are those of single precision in another order than torch's; all else is
    computed as the simulation does, so that hardly a code differs and none by more than a level.

    Args:
        layers: Its readers, alike in transforms, rounding and segments.
        sums: Whether sums of the lanes are wanted.
    """

    def __init__(self, layers: Sequence[QuantLinear], *, sums: bool) -> None:
        first = layers[0]
        self.spec = first.activation_spec
        self.width, self.segment = first.in_features, segment_of(first)
        self.keeps, self.sums = wants_exact(layers), sums
        self.chain = _Chain(first.transforms)
        self.grouped = 0 < self.spec.group < self.width
        self.offset = 0 if library.tile_units() else _LANE_OFFSET
        # the difference of a code and a zero point of 8 bits has nine
        self.keeps_zeros = not self.spec.symmetric and self.spec.bits == _LANE_BITS
        self.fixed = _fixed(self.spec)

    def __call__(self, x: Tensor) -> ReadInput:
        """Read an input; one of another dtype than 32 or 16 bits is read as float32."""
        if not self.chain.known:
            x = in_chunks(x, self.chain.by_torch)
        flat = x.reshape(-1, self.width).contiguous()
        flat = flat if flat.dtype in DTYPES else flat.float()
        found = self._room(len(flat))
        links = len(self.chain.steps) if self.chain.known else 0
        exact = torch.empty_like(flat) if self.keeps and links else None
        told = library.Rows(
            x=flat.data_ptr(), exact=address(exact), lanes=address(found.lanes),
            steps=address(found.steps), zeros=address(found.zeros), sums=address(found.sums),
            chain=ctypes.cast(self.chain.steps, ctypes.c_void_p), links=links, tokens=len(flat),
            dtype=DTYPES[flat.dtype], **self._rounding(),
        )  # fmt: skip
        room = 2 * -(-self.width // _VECTOR) * _VECTOR

        def some(begin: int, end: int) -> None:
            work = torch.empty(room)
            library.library().round_rows(ctypes.byref(told), begin, end, work.data_ptr())

        in_parts(some, len(flat))
        kept = (flat if exact is None else exact).view(x.shape) if self.keeps else None
        return ReadInput(found, kept)

    def _room(self, tokens: int) -> RowLanes:
        """Where the lanes of so many tokens go; a fixed range has its step there already."""
        spec, segments = self.spec, self.width // self.segment
        shape = -(-tokens // SIDE), segments, -(-self.segment // TILE), SIDE, TILE
        zero, zeros = self.offset, None
        if spec.is_static:
            steps = torch.full((1, 1), self.fixed[0])
            if self.keeps_zeros:
                zero += int(self.fixed[1]) - _LANE_OFFSET
        else:
            steps = torch.empty(tokens, segments if self.grouped else 1)
            if self.keeps_zeros:
                zeros = torch.empty(steps.shape, dtype=torch.int32)
        return RowLanes(
            lanes=torch.empty(shape, dtype=torch.uint8), steps=steps, zeros=zeros,
            sums=torch.empty(tokens, segments, dtype=torch.int32) if self.sums else None,
            zero=zero, tokens=tokens, segment=self.segment,
        )  # fmt: skip

    def _rounding(self) -> dict[str, Any]:
        """What is the same for all inputs."""
        spec = self.spec
        bottom, top = code_range(spec.bits, spec.symmetric)
        step, zero = self.fixed
        return {
            "width": self.width, "group": spec.group if self.grouped else self.width,
            "segment": self.segment, "bottom": bottom, "top": top, "low": spec.clip_low,
            "high": spec.clip_high, "step": step, "zero": zero, "fixed": spec.is_static,
            "symmetric": spec.symmetric, "centred": spec.bits < _LANE_BITS, "offset": self.offset,
        }  # fmt: skip


def address(value: Tensor | None) -> int | None:
    """Where a tensor lies, for C; None for none."""
    return None if value is None else value.data_ptr()


def _fixed(spec: ActivationSpec) -> tuple[float, float]:
    """Step and zero point of a fixed range; zeros where each token has its own."""
    if not spec.is_static:
        return 0.0, 0.0
    grid = activation_grid(torch.zeros(1), spec)
    return float(grid.scale), 0.0 if grid.zero is None else float(grid.zero)


class _Chain:
    """Transforms as C applies them; those that it does not know are left to torch."""

    def __init__(self, transforms: nn.ModuleList) -> None:
        self.transforms = list(transforms)
        self.held: list[Tensor] = []
        made = [self._step(one) for one in self.transforms]
        links = [one for one in made if one is not None]
        self.known = len(links) == len(made)
        self.steps = (library.Step * len(links))(*links)

    def by_torch(self, x: Tensor) -> Tensor:
        """Apply them by torch."""
        for one in self.transforms:
            x = one(x)
        return x

    def _step(self, one: nn.Module) -> library.Step | None:
        if type(one) is ChannelScale:
            return library.Step(kind=_SCALE, values=self._at(one.scale))
        if type(one) is Kronecker:
            a, b = len(one.outer), len(one.inner)
            return library.Step(
                kind=_KRONECKER, a=a, b=b,
                outer=self._at(one.outer.t()) if a > 1 else None,
                inner=self._at(one.inner) if b > 1 else None,
            )  # fmt: skip
        if type(one) is Hadamard:
            outer, inner = held_factors(one.signs.numel(), torch.device("cpu"))
            a, b = len(outer), len(inner)
            rotated = bool(a > 1 and (outer != torch.eye(a)).any())
            sylvester = b == 1 or b >= _VECTOR  # below, no vector holds it
            factor = float(inner[0, 0]) if sylvester else 1.0
            return library.Step(
                kind=_HADAMARD, a=a, b=b, values=self._at(one.signs.float() * factor),
                outer=self._at(outer.t()) if rotated else None,
                inner=None if sylvester else self._at(inner),
            )  # fmt: skip
        return None

    def _at(self, value: Tensor) -> int:
        held = value.detach().float().contiguous()
        self.held.append(held)
        return held.data_ptr()
