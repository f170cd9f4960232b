"""Replacing the target linears of a transformer, and reporting what was done."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.bits import IDENTITY_WIDTH
from harness.method import SIMULATED, LayerReport, QuantContext, QuantReport
from harness.models.families.base import InputGroup, linear_at, target_linears
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.layers import QuantizedLayer, quantized_layers, replace_module_

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn


def activation_of(group: InputGroup, spec: ActivationSpec) -> ActivationSpec:
    """Activation quantizer of a group: a modulation input stays at 16 bits."""
    return ActivationSpec(bits=IDENTITY_WIDTH) if group.modulation else spec


def quantize_linears_(
    transformer: nn.Module,
    ctx: QuantContext,
    make: Callable[[nn.Linear, InputGroup], QuantizedLayer],
    modulation: str = "w",
) -> QuantReport:
    """Replace every target linear by what ``make`` returns for it, in place.

    This is all that a method needs which treats each linear on its own.
    """
    found = target_linears(ctx.family, transformer, modulation)
    for i, (name, group) in enumerate(found.items()):
        replace_module_(transformer, name, make(linear_at(transformer, name), group))
        ctx.progress((i + 1) / len(found), name)
    return QuantReport(execution=SIMULATED, layers=layer_reports(transformer))


def layer_reports(
    transformer: nn.Module, errors: Iterable[tuple[str, float]] = ()
) -> tuple[LayerReport, ...]:
    """Describe every quantized linear of a transformer.

    Args:
        transformer: Holds quantized layers.
        errors: Relative output errors by qualified name, where measured.
    """
    measured = dict(errors)
    return tuple(
        replace(layer.report(name), error=measured.get(name))
        for name, layer in quantized_layers(transformer).items()
    )
