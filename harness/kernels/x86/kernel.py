"""The kernel of x86 processors: any grid of 2 to 8 bits, for channels, tokens or groups of them."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from harness.kernels.contract import Kernel
from harness.kernels.product import WIDEST
from harness.kernels.x86 import library
from harness.kernels.x86.rows import DTYPES, TILE, RowReader, address, segment_of
from harness.kernels.x86.threads import in_parts
from harness.kernels.x86.weight import tiled_weight

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from harness.kernels.x86.rows import RowLanes
    from harness.quant.layers.linear import QuantLinear

_FEWEST = 32
"""Channels of a segment below which most of a tile of 64 would be padding."""


class X86Int8(Kernel):
    """Signed 8-bit lanes on AMX or AVX-512 VNNI, by C that is compiled on first use."""

    name: ClassVar[str] = "x86-int8"

    def missing(self, device: torch.device) -> str | None:
        """It needs a processor with AVX-512 VNNI and a C compiler."""
        if device.type != "cpu":
            return "it is for processors"
        return library.missing()

    def refusal(self, layer: QuantLinear) -> str | None:
        """It takes segments of 32 channels and more whose sums stay within 32 bits."""
        segment = segment_of(layer)
        if segment < min(_FEWEST, layer.in_features):
            return f"steps are for {segment} channels, fewer than {_FEWEST}"
        if segment > WIDEST // 2:  # lanes of a vector unit are unsigned on one side
            return f"{segment} input channels could leave 32 bits"
        return None

    def layout(self, layer: QuantLinear) -> Hashable:
        """Segments start tiles; codes are summed for weights with a zero point in the lanes."""
        return segment_of(layer), _has_zeros(layer)

    def reader(self, layers: Sequence[QuantLinear]) -> RowReader:
        """Rotation, rounding and layout in one pass over a token."""
        return RowReader(layers, sums=_has_zeros(layers[0]))

    def product(self, layer: QuantLinear) -> nn.Module:
        """Lay the weight out in tiles, two 4-bit codes to a byte."""
        return _Product(layer)


def _has_zeros(layer: QuantLinear) -> bool:
    """Whether zero points stay beside the weight's lanes: with 8 bits the difference has nine."""
    return layer.weight_spec.bits == 8 and layer.zero is not None


class _Product(nn.Module):
    def __init__(self, layer: QuantLinear) -> None:
        super().__init__()
        self.out_features = layer.out_features
        self.segment = segment_of(layer)
        self.segments = layer.in_features // self.segment
        made = tiled_weight(layer, self.segment)
        self.register_buffer("lanes", made.lanes)
        self.register_buffer("shifts", made.shifts)
        self.register_buffer("steps", made.steps)
        self.register_buffer("sums", made.sums)
        self.register_buffer("zeros", made.zeros)
        bias = torch.zeros(self.steps.shape[1])
        if layer.bias is not None:
            bias[: self.out_features] = layer.bias.detach().float()
        self.register_buffer("constant", bias)

    lanes: Tensor
    shifts: Tensor | None
    steps: Tensor
    sums: Tensor
    zeros: Tensor | None
    constant: Tensor

    def forward(self, codes: RowLanes, out: Tensor) -> None:
        """Compute into ``out``, ``[tokens, out_features]``."""
        direct = out.dtype in DTYPES and out.is_contiguous()
        target = out if direct else torch.empty(out.shape, dtype=torch.float32)
        tokens, groups = codes.steps.shape
        told = library.Product(
            lanes=codes.lanes.data_ptr(), steps=codes.steps.data_ptr(), zeros=address(codes.zeros),
            sums=address(codes.sums), weight=self.lanes.data_ptr(), shifts=address(self.shifts),
            weight_steps=self.steps.data_ptr(), weight_sums=self.sums.data_ptr(),
            weight_zeros=address(self.zeros), bias=self.constant.data_ptr(), out=target.data_ptr(),
            tokens=len(out), outputs=self.out_features, columns=self.steps.shape[1],
            segments=self.segments, tiles=-(-self.segment // TILE),
            token_stride=groups if tokens > 1 else 0, segment_stride=int(groups > 1),
            zero=codes.zero, dtype=DTYPES[target.dtype], amx=int(library.tile_units()),
        )  # fmt: skip

        def some(first: int, last: int) -> None:
            made = library.library()
            room = made.product_scratch(ctypes.byref(told), last - first)
            scratch = torch.empty(max(1, room), dtype=torch.uint8)
            made.product(ctypes.byref(told), first, last, scratch.data_ptr())

        in_parts(some, len(self.lanes))
        if not direct:
            out.copy_(target)
