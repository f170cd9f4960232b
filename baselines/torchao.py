"""torchao's linears, as a diffusers user gets them through ``TorchAoConfig``.

``torchao-int8``: symmetric 8-bit weights per output channel, symmetric dynamic 8-bit activations
per token, multiplied as integers. ``torchao-int4wo``: asymmetric 4-bit weights in groups, 16-bit
activations. ``torchao-fp8``: e4m3 weights per output channel, dynamic e4m3 activations per token.
Each goes through ``torchao.quantization.quantize_``, on the target linears of the family only: by
default torchao would also convert embedders, the final projection and everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from harness.api import (
    IDENTITY_WIDTH,
    BitSpec,
    Deviation,
    Method,
    QuantContext,
    QuantReport,
    Reproduction,
    TargetOptions,
    Unsupported,
    UnsupportedError,
    options,
)
from harness.quant import (
    LibraryLinear,
    LibraryScheme,
    cuda_capability,
    library_linears_,
    not_installed,
    only_at,
)

if TYPE_CHECKING:
    from harness.quant import InputGroup

LIBRARY = "torchao"
Int4Group = Literal[256, 128, 64, 32]
"""What torchao's tile-packed 4-bit product takes."""
INT4_TILE = (8, 1024)  # Int4TilePackedTo4dTensor pads to these
INT4_CAPABILITY = (8, 0)  # Int4TilePackedTo4dTensor refuses older devices
FP8_CAPABILITY = (8, 9)  # Float8DynamicActivationFloat8WeightConfig refuses older devices
_SKIP = Deviation(
    kind="adaptation",
    what="the family's target linears only; torchao without a filter converts every linear, "
    "patch and time embedders and the output projection included",
    why="the same targets for every row",
)
_MODULATION = Deviation(
    kind="adaptation",
    what="modulation linears are converted weight-only, activations left at 16 bits",
    why="the rule of the table: their input is one conditioning vector, not tokens",
)


@options
class TorchAOInt4Options(TargetOptions):
    """Knobs.

    Attributes:
        group: Input channels that share a step; a smaller one where it does not divide the width.
    """

    group: Int4Group = 128  # Int4WeightOnlyConfig's default


class TorchAOInt8(Method):
    """``Int8DynamicActivationInt8WeightConfig``."""

    name = "torchao-int8"
    Options = TargetOptions
    libraries = (LIBRARY,)
    reproduction = Reproduction(
        title="torchao: Int8DynamicActivationInt8WeightConfig, granularity per row",
        source="the package torchao",
        code="https://github.com/pytorch/ao",
        deviations=(_SKIP, _MODULATION),
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """w8a8, wherever torchao is installed."""
        label = only_at(str(bits), ("w8a8",), "torchao multiplies int8 by int8")
        return label or not_installed(LIBRARY)

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Convert every target linear."""

        def make(linear: nn.Linear, group: InputGroup) -> LibraryLinear:
            from torchao import quantization as ao

            if group.modulation:
                config: Any = ao.Int8WeightOnlyConfig(set_inductor_config=False)
            else:
                config = ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
            scheme = LibraryScheme(library=LIBRARY, w_bits=8, a_bits=_a_bits(group))
            return _converted(linear, config, scheme)

        return library_linears_(transformer, ctx, self.name, make)


class TorchAOInt4WeightOnly(Method):
    """``Int4WeightOnlyConfig`` in the tile-packed layout."""

    name = "torchao-int4wo"
    Options = TorchAOInt4Options
    libraries = (LIBRARY,)
    reproduction = Reproduction(
        title="torchao: Int4WeightOnlyConfig, tile_packed_to_4d",
        source="the package torchao",
        code="https://github.com/pytorch/ao",
        deviations=(
            _SKIP,
            Deviation(
                kind="deviation",
                what="packed as tile_packed_to_4d; torchao's default layout is plain",
                why="the plain layout needs the package mslk besides",
            ),
        ),
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """w4a16, on a CUDA device."""
        label = only_at(str(bits), ("w4a16",), "torchao's 4-bit linear is weight-only")
        return label or not_installed(LIBRARY) or _needs(INT4_CAPABILITY, "torchao's 4-bit layout")

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Convert every target linear."""
        _refuse(ctx, transformer, self.name)

        def make(linear: nn.Linear, group: InputGroup) -> LibraryLinear:
            from torchao.quantization import Int4WeightOnlyConfig

            size = _int4_group(linear, ctx.options.group)
            config = Int4WeightOnlyConfig(
                group_size=size,
                int4_packing_format="tile_packed_to_4d",
                set_inductor_config=False,
            )
            scheme = LibraryScheme(
                library=LIBRARY, w_bits=4, a_bits=IDENTITY_WIDTH, group=size, symmetric=False,
                tile=INT4_TILE,
            )  # fmt: skip
            return _converted(linear, config, scheme)

        return library_linears_(transformer, ctx, self.name, make)


class TorchAOFloat8(Method):
    """``Float8DynamicActivationFloat8WeightConfig``, one scale for each row."""

    name = "torchao-fp8"
    Options = TargetOptions
    libraries = (LIBRARY,)
    reproduction = Reproduction(
        title="torchao: Float8DynamicActivationFloat8WeightConfig, granularity per row",
        source="the package torchao",
        code="https://github.com/pytorch/ao",
        deviations=(
            _SKIP,
            _MODULATION,
            Deviation(
                kind="deviation",
                what="one scale for each token and output channel; torchao's default is one for "
                "each tensor",
                why="the granularity of every other w8a8 row",
            ),
        ),
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """w8a8 in e4m3, on a CUDA device that multiplies it."""
        label = only_at(str(bits), ("w8a8",), "torchao multiplies fp8 by fp8")
        return label or not_installed(LIBRARY) or _needs(FP8_CAPABILITY, "torchao's fp8 product")

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Convert every target linear."""
        _refuse(ctx, transformer, self.name)

        def make(linear: nn.Linear, group: InputGroup) -> LibraryLinear:
            from torchao import quantization as ao

            if group.modulation:
                config: Any = ao.Float8WeightOnlyConfig(set_inductor_config=False)
            else:
                config = ao.Float8DynamicActivationFloat8WeightConfig(
                    granularity=ao.PerRow(), set_inductor_config=False
                )
            scheme = LibraryScheme(library=LIBRARY, w_bits=8, a_bits=_a_bits(group))
            return _converted(linear, config, scheme)

        return library_linears_(transformer, ctx, self.name, make)


def _converted(linear: nn.Linear, config: Any, scheme: LibraryScheme) -> LibraryLinear:
    from torchao.quantization import quantize_

    shape, dtype = (linear.out_features, linear.in_features), linear.weight.dtype
    quantize_(nn.Sequential(linear), config, filter_fn=lambda module, name: module is linear)
    if type(linear.weight) is nn.Parameter:  # torchao leaves a shape alone that it cannot take
        raise UnsupportedError(
            f"torchao left a linear of shape {list(shape)} as it was",
            "its product wants widths that are multiples of 16 (fp8) or of the group (int4)",
        )
    return LibraryLinear(linear, scheme, shape, dtype)


def _a_bits(group: InputGroup) -> int:
    return IDENTITY_WIDTH if group.modulation else 8


def _int4_group(linear: nn.Linear, wanted: int) -> int:
    sizes: tuple[int, ...] = get_args(Int4Group)
    for size in sizes:
        if size <= wanted and linear.in_features % size == 0:
            return size
    raise UnsupportedError(
        f"torchao packs 4-bit weights in groups of 32 or more, and {linear.in_features} input "
        "channels are no multiple of 32",
        "leave torchao-int4wo out for this model",
    )


def _needs(capability: tuple[int, int], what: str) -> Unsupported | None:
    found = cuda_capability()
    needed = ".".join(map(str, capability))
    if found is None:
        return Unsupported(
            reason=f"{what} needs a CUDA device (compute capability {needed} or newer); there is "
            "none here"
        )
    if found < capability:
        has = ".".join(map(str, found))
        return Unsupported(
            reason=f"{what} needs compute capability {needed} or newer; this device has {has}"
        )
    return None


def _refuse(ctx: QuantContext, transformer: nn.Module, name: str) -> None:
    """A CUDA device may be there and not be the one that was chosen."""
    if ctx.device.type != "cuda":
        raise UnsupportedError(
            f"{name} computes on CUDA only; the run's device is {ctx.device}",
            "give --device cuda, or leave the method out",
        )
    dtype = str(next(transformer.parameters()).dtype).removeprefix("torch.")
    if dtype != "bfloat16":
        raise UnsupportedError(
            f"{name} computes in bfloat16 only; the model is in {dtype}",
            'set dtype = "bfloat16" for the model, or leave the method out',
        )
