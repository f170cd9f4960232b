"""A quantization method of one's own, in one file: round to nearest in a range that is shrunk.

Takes twenty seconds on two cores. From the command line it is named by module and class:

    PYTHONPATH=examples harness run --methods my_method:Shrunk,rtn --bits w4a6
"""

import tempfile
from pathlib import Path

import harness
from harness.api import Method, QuantReport, Reproduction, Share, TargetOptions, options
from harness.quant import (
    ActivationSpec,
    WeightSpec,
    activation_of,
    quantize_linear,
    quantize_linears_,
)


@options
class ShrunkOptions(TargetOptions):
    """What can be set of it."""

    keep: Share = 0.9  # share of each weight row's range that the grid covers; the rest is clipped


class Shrunk(Method):
    """Clips the outermost weights of each row, so that all others get finer steps."""

    name = "shrunk"
    Options = ShrunkOptions
    reproduction = Reproduction(title="An example", source="none", code="this file")

    def quantize_(self, transformer, ctx) -> QuantReport:
        """Replace every target linear, in place."""
        weight, activation = WeightSpec(bits=ctx.bits.w), ActivationSpec(bits=ctx.bits.a)

        def shrink(linear, group):
            act = activation_of(group, activation)  # inputs of modulation stay at 16 bits
            return quantize_linear(linear, weight, act, clip=ctx.options.keep)

        return quantize_linears_(transformer, ctx, shrink)


def main() -> None:
    """Quantize the bundled model with it; `run_experiment` takes its name as `harness run` does."""
    pipeline = harness.load_pipeline("shapes")
    with tempfile.TemporaryDirectory() as folder:
        out, chosen = Path(folder) / "shrunk", {"keep": 0.8}
        artifact = harness.quantize(pipeline, Shrunk, bits="w4a6", out=out, options=chosen)
    size = artifact.report["footprint"]
    print(f"{len(artifact.report['layers'])} layers, {size['avg_w_bits']:.2f} bits a weight")


if __name__ == "__main__":
    main()
