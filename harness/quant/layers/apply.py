"""Replacing the target linears of a transformer, and reporting what was done."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.bits import IDENTITY_WIDTH
from harness.method import SIMULATED, LayerReport, QuantContext, QuantReport
from harness.models.families.base import InputGroup, linear_at, target_linears
from harness.models.offload import resident
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.layers import QuantizedLayer, quantized_layers, replace_module_

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn


def activation_of(group: InputGroup, spec: ActivationSpec) -> ActivationSpec:
    """Activation quantizer of a group: a modulation input stays at 16 bits."""
    return ActivationSpec(bits=IDENTITY_WIDTH) if group.modulation else spec


def quantize_linears_(
    transformer: nn.Module,
    ctx: QuantContext,
    make: Callable[[nn.Linear, InputGroup], QuantizedLayer],
    modulation: str | None = None,
) -> QuantReport:
    """Replace every target linear by what ``make`` returns for it, in place.

    This is all that a method needs which treats each linear on its own.

    Args:
        transformer: The denoiser.
        ctx: Context of the method.
        make: The quantized layer for a linear of an input group.
        modulation: ``w`` counts modulation linears in, ``fp`` leaves them out; None takes the
            option of that name, ``w`` where the method has none.
    """
    if modulation is None:
        modulation = str(getattr(ctx.options, "modulation", "w"))
    found = target_linears(ctx.family, transformer, modulation)
    for i, (name, group) in enumerate(found.items()):
        linear = linear_at(transformer, name)
        home = linear.weight.device
        with resident(linear, ctx.device):
            layer = make(linear, group)
        replace_module_(transformer, name, layer if home == ctx.device else layer.to(home))
        ctx.progress((i + 1) / len(found), name)
    return QuantReport(execution=SIMULATED, layers=layer_reports(transformer))


def layer_reports(
    transformer: nn.Module, errors: Mapping[str, float] | None = None
) -> tuple[LayerReport, ...]:
    """Describe every quantized linear of a transformer.

    Args:
        transformer: Holds quantized layers.
        errors: Relative output errors by qualified name, where measured.
    """
    measured = errors or {}
    return tuple(
        replace(layer.report(name), error=measured.get(name))
        for name, layer in quantized_layers(transformer).items()
    )
