"""Round to nearest after a Hadamard rotation of every input, the idea of QuaRot (2404.00456)."""

from dataclasses import dataclass

from harness.api import QuantContext, QuantReport, Reproduction
from harness.quant.activation import ActivationSpec
from harness.quant.apply import activation_of, quantize_linears_
from harness.quant.linear import WeightSpec, quantize_linear
from harness.quant.transform import Hadamard


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    group: int = 0  # input channels that share a weight step, 0 for the whole row


class Rotated:
    name = "rotated"
    version = 1  # raise it when the same options give another artifact
    Options = Options
    needs_calibration = False  # data-free: touching ctx.calibration is then an error
    unquantized = False
    reproduction = Reproduction(title="QuaRot, its rotation only", source="2404.00456", code="")

    def supports(self, family, bits):
        return None  # or Unsupported(reason="...")

    def quantize_(self, transformer, ctx: QuantContext) -> QuantReport:
        weight = WeightSpec(bits=ctx.bits.w, group=ctx.options.group)
        activation = ActivationSpec(bits=ctx.bits.a)

        def rotate(linear, group):
            turn = Hadamard.random(linear.in_features, ctx.generator())
            act = activation_of(group, activation)
            return quantize_linear(linear, weight, act, transforms=[turn])

        return quantize_linears_(transformer, ctx, rotate)
