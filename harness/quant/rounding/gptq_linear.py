"""A quantized linear whose weight GPTQ has rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.bits import IDENTITY_WIDTH
from harness.quant.layers.grid import weight_grid
from harness.quant.layers.linear import (
    QuantLinear,
    WeightSpec,
    quantize_linear,
    stored_grid,
    transformed_weight,
)
from harness.quant.rounding.gptq import PERCDAMP, gptq, gptq_current_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.quant.layers.activation import ActivationSpec


def gptq_linear(
    linear: nn.Linear,
    weight: WeightSpec,
    activation: ActivationSpec,
    hessian: Tensor,
    *,
    transforms: Sequence[nn.Module] = (),
    clip: Tensor | float = 1.0,
    percdamp: float = PERCDAMP,
    act_order: bool = False,
) -> QuantLinear:
    """Replace a linear by one whose weight GPTQ has rounded.

    Args:
        linear: The layer to replace; it is not changed.
        weight: How the weight is rounded. The grids of groups are fitted as the rounding reaches
            them, before it where ``act_order`` asks for it.
        activation: How the input is rounded.
        hessian: Of the transformed inputs.
        transforms: Input transforms; the weight is mapped accordingly.
        clip: Factor on the range of each row, number or ``[out, 1]``; only without groups.
        percdamp: Dampening as a fraction of the mean diagonal.
        act_order: Round the columns with the largest diagonal of the Hessian first.
    """
    if weight.bits == IDENTITY_WIDTH:
        return quantize_linear(linear, weight, activation, transforms=transforms)
    mapped = transformed_weight(linear.weight.detach().float(), transforms)
    if weight.group and not act_order:
        codes, grid = gptq_current_groups(
            mapped, hessian, weight.bits,
            group=weight.group, symmetric=weight.symmetric, percdamp=percdamp,
        )  # fmt: skip
    else:
        grid = stored_grid(
            weight_grid(
                mapped, weight.bits, symmetric=weight.symmetric, group=weight.group, clip=clip
            )
        )
        codes = gptq(
            mapped, hessian, grid, weight.bits,
            group=weight.group, percdamp=percdamp, act_order=act_order,
        )  # fmt: skip
    return quantize_linear(
        linear, weight, activation, transforms=transforms, grid=grid, codes=codes
    )
