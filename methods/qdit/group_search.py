"""Group sizes of a whole denoiser as genomes: what they cost, and what they do to its output."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.quant import (
    ActivationSpec,
    WeightSpec,
    fitting_group,
    linear_at,
    observing,
    quantize_linear,
    replace_module_,
)
from methods.qdit.evolution import Evolution, Evolved, Genome, evolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.api import QuantContext
    from harness.quant import Sample

RESCALE_BITOPS = 16 * 16
"""Bit operations of one rescaling of a group's partial sum: a product of two 16-bit numbers."""


def bit_operations(rows: int, linear: nn.Linear, group: int, w_bits: int, a_bits: int) -> int:
    """Bit operations of a linear in groups: its products, and one rescaling for each group.

    Args:
        rows: Tokens.
        linear: The layer.
        group: Group size, a divisor of the width.
        w_bits: Weight width.
        a_bits: Activation width.
    """
    width, outputs = linear.in_features, linear.out_features
    return rows * outputs * (width * w_bits * a_bits + width // group * RESCALE_BITOPS)


class GroupSearch:
    """Tries configurations on the denoiser itself, weights rounded to nearest.

    A gene is the group size of one token input; the linears that read it share it. While a search
    runs the denoiser holds quantized layers; ``search`` puts the original ones back.

    Args:
        transformer: The denoiser in full precision.
        ctx: Context of the method.
        samples: Samples on which outputs are compared, all guidance branches.
        sizes: Group sizes to choose from, fitted to each width.
        default: Group size of the start, and of the budget.
    """

    def __init__(
        self,
        transformer: nn.Module,
        ctx: QuantContext,
        samples: Sequence[Sample],
        sizes: Sequence[int],
        default: int,
    ) -> None:
        self.transformer = transformer
        self.ctx = ctx
        self.samples = list(samples)
        self.readers = [
            [f"{name}.{linear}" for linear in group.linears]
            for name, block in ctx.family.blocks(transformer)
            for group in ctx.family.groups(block)
            if not group.modulation
        ]
        self.linears = {n: linear_at(transformer, n) for names in self.readers for n in names}
        widths = [self.linears[names[0]].in_features for names in self.readers]
        self.choices = [sorted({fitting_group(w, size) for size in sizes}) for w in widths]
        self.start: Genome = tuple(fitting_group(w, default) for w in widths)
        self._rows: dict[str, int] = {}
        self._exact: list[Tensor] = []
        self._held: list[int] = [0] * len(self.readers)

    @torch.no_grad()
    def _outputs(self) -> Iterator[Tensor]:
        pool = self.ctx.calibration
        for sample in self.samples:
            yield self.transformer(**pool.call(sample, self.ctx.device).arguments)[0].float()

    def _observe(self) -> None:
        """Keep the full-precision outputs, and count the tokens of every linear."""
        rows = dict.fromkeys(self.linears, 0)

        def count(name: str, x: Tensor) -> None:
            rows[name] += x.numel() // x.shape[-1]

        with observing(self.transformer, list(self.linears), count):
            self._exact = [out.cpu() for out in self._outputs()]
        self._rows = rows

    def bitops(self, genome: Genome) -> int:
        """Bit operations of a configuration over the samples."""
        bits = self.ctx.bits
        return sum(
            bit_operations(self._rows[name], self.linears[name], size, bits.w, bits.a)
            for names, size in zip(self.readers, genome, strict=True)
            for name in names
        )

    def loss(self, genome: Genome) -> float:
        """Relative squared error of the denoiser's output under a configuration."""
        self._install_(genome)
        wrong = size = 0.0
        for exact, out in zip(self._exact, self._outputs(), strict=True):
            wrong += float((out.cpu() - exact).double().square().sum())
            size += float(exact.double().square().sum())
        return wrong / size

    def _install_(self, genome: Genome) -> None:
        """Put quantized layers in place; those that have their size already stay."""
        bits = self.ctx.bits
        for gene, (names, size) in enumerate(zip(self.readers, genome, strict=True)):
            if self._held[gene] == size:
                continue
            weight = WeightSpec(bits=bits.w, symmetric=False, group=size)
            activation = ActivationSpec(bits=bits.a, symmetric=False, group=size)
            for name in names:
                layer = quantize_linear(self.linears[name], weight, activation)
                replace_module_(self.transformer, name, layer)
            self._held[gene] = size

    def search(self, settings: Evolution, budget: float) -> Evolved:
        """Search under ``budget`` times the bit operations of the start; layers are put back."""
        self._observe()
        bound = budget * self.bitops(self.start)
        most = settings.population * (settings.rounds + 1)

        def kept_loss(genome: Genome) -> float:
            sizes = "-".join(map(str, genome))
            key = hashlib.sha256(sizes.encode()).hexdigest()[:16]
            return self.ctx.keep(f"loss of {key}", lambda: self.loss(genome))

        try:
            return evolve(
                self.choices, self.start, kept_loss,
                lambda genome: self.bitops(genome) <= bound,
                settings, self.ctx.generator(salt=7),
                lambda done: self.ctx.progress(done / most, f"group sizes {done}/{most}"),
            )  # fmt: skip
        finally:
            for name, linear in self.linears.items():
                replace_module_(self.transformer, name, linear)
            self._held = [0] * len(self.readers)
