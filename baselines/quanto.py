"""optimum-quanto's weight-only linears, as a diffusers user gets them through ``QuantoConfig``.

8 bits: symmetric, one step for each output channel. 4 bits: asymmetric, in groups of 128 input
channels or the next size quanto finds that divides the width, one step for each output channel on
narrower layers.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import torch
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
)
from harness.quant import (
    LibraryLinear,
    LibraryScheme,
    library_linears_,
    not_installed,
    only_at,
)

if TYPE_CHECKING:
    from harness.quant import InputGroup

LIBRARY = "optimum-quanto"


class Quanto(Method):
    """``quantize`` and ``freeze`` with ``qint8`` or ``qint4`` weights."""

    name = "quanto"
    Options = TargetOptions
    libraries = (LIBRARY,)
    reproduction = Reproduction(
        title="optimum-quanto: qint8 and qint4 weights",
        source="the package optimum-quanto",
        code="https://github.com/huggingface/optimum-quanto",
        deviations=(
            Deviation(
                kind="adaptation",
                what="the family's target linears only; quanto without a list converts every "
                "linear and normalisation it knows",
                why="the same targets for every row",
            ),
        ),
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """w8a16 and w4a16, wherever quanto is installed; 4 bits on a CPU need a compiler too."""
        label = only_at(
            str(bits), ("w8a16", "w4a16"), "quanto is weight-only in diffusers, int8 or int4"
        )
        return label or not_installed(LIBRARY) or (no_compiler() if bits.w == 4 else None)

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Convert every target linear."""

        def make(linear: nn.Linear, group: InputGroup) -> LibraryLinear:
            _check(linear, ctx)
            return _converted(linear, ctx.bits.w)

        return library_linears_(transformer, ctx, self.name, make)


def no_compiler() -> Unsupported | None:
    """Whether quanto's CPU code for 4-bit weights, built at its first use, cannot be built."""
    compiler = os.environ.get("CXX", "c++")  # as torch.utils.cpp_extension chooses it
    if torch.cuda.is_available() or shutil.which(compiler):
        return None
    return Unsupported(
        reason="quanto compiles its CPU code for 4-bit weights at the first use, and there is no "
        f"C++ compiler '{compiler}'"
    )


def _check(linear: nn.Linear, ctx: QuantContext) -> None:
    """Refuse what may kill the process.

    In bfloat16 on a CPU quanto multiplies 8-bit weights by ``torch._weight_int8pack_mm``, which in
    torch 2.13 reads past the end of its inputs: wrong values or a segmentation fault, depending on
    what lies behind them.
    """
    if ctx.bits.w == 8 and ctx.device.type == "cpu" and linear.weight.dtype == torch.bfloat16:
        raise UnsupportedError(
            "quanto's bfloat16 x int8 product on a CPU reads past the end of its inputs and may "
            "end the process",
            "run the model in float32 or on CUDA, or leave quanto w8a16 out",
        )


def _converted(linear: nn.Linear, bits: int) -> LibraryLinear:
    from optimum.quanto import freeze, quantize

    shape, dtype = (linear.out_features, linear.in_features), linear.weight.dtype
    model = nn.Sequential(linear)
    quantize(model, weights=f"qint{bits}")
    freeze(model)
    inner: Any = model[0].requires_grad_(False)
    scheme = LibraryScheme(
        library=LIBRARY, w_bits=bits, a_bits=IDENTITY_WIDTH, group=inner.weight_group_size or 0,
        symmetric=bits == 8,
    )  # fmt: skip
    return LibraryLinear(inner, scheme, shape, dtype)
