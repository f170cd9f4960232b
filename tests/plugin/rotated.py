"""Round to nearest after a Hadamard rotation of every input, the idea of QuaRot (2404.00456)."""

from harness.api import Method, QuantReport, Reproduction, TargetOptions, Whole, options
from harness.quant import (
    ActivationSpec,
    Hadamard,
    WeightSpec,
    activation_of,
    quantize_linear,
    quantize_linears_,
)


@options
class RotatedOptions(TargetOptions):
    group: Whole = 0  # input channels that share a weight step, 0 for the whole row


class Rotated(Method):
    name = "rotated"
    Options = RotatedOptions
    reproduction = Reproduction(title="QuaRot, its rotation only", source="2404.00456", code="")

    def quantize_(self, transformer, ctx) -> QuantReport:
        weight = WeightSpec(bits=ctx.bits.w, group=ctx.options.group)
        activation = ActivationSpec(bits=ctx.bits.a)

        def rotate(linear, group):
            turn = Hadamard.random(linear.in_features, ctx.generator())
            act = activation_of(group, activation)
            return quantize_linear(linear, weight, act, transforms=[turn])

        return quantize_linears_(transformer, ctx, rotate)
