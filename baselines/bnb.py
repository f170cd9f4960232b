"""bitsandbytes' NF4 linears, as a diffusers user gets them through ``BitsAndBytesConfig``.

Four bits a weight on the 16 levels of NF4 (QLoRA, arXiv 2305.14314), one scale for 64 weights of
the flattened matrix, the scales themselves in 8 bits (double quantization); weights are dequantized
before each product.
"""

from __future__ import annotations

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
    options,
)
from harness.quant import (
    LibraryLinear,
    LibraryScheme,
    library_linears_,
    not_installed,
    only_at,
    stay_plain_,
)

if TYPE_CHECKING:
    from harness.quant import InputGroup

LIBRARY = "bitsandbytes"
BLOCK = 64  # Params4bit's default
FAR = 0.25
"""Of the largest weight of a block: no NF4 rounding is this far off.

Its widest gap is 0.304, so that rounding errs by 0.152 at most; the rest is for rounded scales.
"""


@options
class BitsAndBytesOptions(TargetOptions):
    """Knobs.

    Attributes:
        double_quant: Whether the scales are stored in 8 bits.
    """

    double_quant: bool = True  # Linear4bit's default; BitsAndBytesConfig of diffusers says False


class BitsAndBytesNF4(Method):
    """``bitsandbytes.nn.Linear4bit`` with ``quant_type="nf4"``."""

    name = "bnb-nf4"
    Options = BitsAndBytesOptions
    libraries = (LIBRARY,)
    reproduction = Reproduction(
        title="QLoRA: Efficient Finetuning of Quantized LLMs (the NF4 data type)",
        source="arXiv 2305.14314",
        code="https://github.com/bitsandbytes-foundation/bitsandbytes",
        deviations=(
            Deviation(
                kind="adaptation",
                what="the family's target linears only, the product in the model's own dtype; "
                "BitsAndBytesConfig computes in float32 unless told otherwise",
                why="the same targets and the same dtype for every row",
            ),
            Deviation(
                kind="adaptation",
                what="on a processor the library is used directly; diffusers' own loader refuses "
                "bitsandbytes without an accelerator. Its bfloat16 kernel for AVX512-BF16 is off",
                why="that kernel repacks the weights in place and drops the double quantization: "
                "the model would no longer be the one that was saved",
            ),
        ),
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """w4a16, wherever bitsandbytes is installed."""
        label = only_at(str(bits), ("w4a16",), "bitsandbytes' NF4 linear is weight-only")
        return label or not_installed(LIBRARY)

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Convert every target linear."""

        def make(linear: nn.Linear, group: InputGroup) -> LibraryLinear:
            return _converted(linear, ctx.options.double_quant, ctx.device)

        return library_linears_(transformer, ctx, self.name, make)


def _converted(linear: nn.Linear, double_quant: bool, device: torch.device) -> LibraryLinear:
    from bitsandbytes.nn import Linear4bit, Params4bit

    shape, dtype = (linear.out_features, linear.in_features), linear.weight.dtype
    inner: Any = Linear4bit(
        shape[1], shape[0], bias=linear.bias is not None, compute_dtype=dtype, quant_type="nf4",
        device="meta",
    )  # fmt: skip
    inner.weight = Params4bit(
        linear.weight.detach(), requires_grad=False, compress_statistics=double_quant,
        quant_type="nf4", module=inner,
    )  # fmt: skip
    inner.bias = linear.bias
    inner = inner.to(device)  # moving it is what quantizes it
    stay_plain_(inner)
    inner.requires_grad_(False)
    _check(linear.weight.detach(), inner)
    scheme = LibraryScheme(
        library=LIBRARY, w_bits=4, a_bits=IDENTITY_WIDTH, group=BLOCK, symmetric=True
    )
    return LibraryLinear(inner, scheme, shape, dtype)


def _check(weight: torch.Tensor, inner: Any) -> None:
    """Refuse a layer that the library dequantizes with the scales of other blocks.

    Its CPU code (0.50.2) does that for most input widths that are no multiple of the block. At
    other widths a block may be far off by right: the double quantization rounds the scales of
    blocks that differ a hundredfold on one grid.
    """
    if weight.shape[1] % BLOCK == 0:
        return
    from bitsandbytes.functional import dequantize_4bit

    exact, state = weight.float().flatten(), inner.weight.quant_state
    back = dequantize_4bit(inner.weight.data, state).float().flatten()
    fill = (0, -exact.numel() % BLOCK)
    exact, back = (nn.functional.pad(v, fill).reshape(-1, BLOCK) for v in (exact, back))
    largest = exact.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    worst = float(((back - exact).abs().amax(dim=1) / largest).max())
    if worst > FAR:
        raise UnsupportedError(
            f"bitsandbytes gives wrong weights back on {weight.device.type} for {weight.shape[1]} "
            f"input channels, which are no multiple of {BLOCK} (off by {worst:.2f} of the largest)",
            "leave bnb-nf4 out for this model, or use another device",
        )
