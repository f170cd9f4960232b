"""Q-VLM: joint search of quantizers inside blocks of dependent layers.

Q-VLM: Post-training Quantization for Large Vision-Language Models, arXiv 2410.08119, NeurIPS 2024,
ported from a language model to a denoiser. In four steps:
1. Dependency of neighbouring layers: entropy of the one's activation codes given the other's.
2. Layers whose mean dependency exceeds a threshold form a block of at most three (eq. 4-7).
3. The clipping of all layers of a block is searched jointly for the smallest error at the block's
   output (eq. 3), on the inputs that the quantized layers before it deliver.
4. Everything else is rounded to nearest.
Layers are the nodes of ``blocks``, which has the formulas.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness.api import Count, Method, QuantContext, QuantReport, SpacedOptions, options
from harness.quant import Walk, shortage, uniform_samples
from methods.qvlm.blocks import (
    LONGEST,
    dependency_threshold,
    nodes_of,
    over_trajectory,
    partition,
)
from methods.qvlm.paper import REPRODUCTION
from methods.qvlm.search import PERCENTILES, RATIOS, JointSearch
from methods.qvlm.survey import survey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from harness.quant import Sample
    from methods.qvlm.survey import Ranges


@options
class QVLMOptions(SpacedOptions):
    """Knobs of Q-VLM.

    Attributes:
        partition: ``entropy``; ``greedy`` searches each node by itself (the paper's row without
            cross-layer dependency); ``fixed`` takes every ``length`` nodes without asking.
        length: Most nodes in a block.
        threshold: h_0 is the ``mean`` or the ``median`` of the dependencies.
        activations: ``dynamic`` per token with a searched factor on the range, or ``static`` per
            tensor with searched percentiles.
        search: ``activations``, or ``both`` for a factor on the weights' range too.
        search_samples: How many of the samples the search sees.
    """

    partition: Literal["entropy", "greedy", "fixed"] = "entropy"
    length: Annotated[int, Field(ge=1, le=LONGEST)] = LONGEST
    threshold: Literal["mean", "median"] = "mean"
    activations: Literal["dynamic", "static"] = "dynamic"
    search: Literal["activations", "both"] = "activations"
    search_samples: Count = 8


class QVLM(Method):
    """Entropy-guided partition, joint clipping search."""

    name = "qvlm"
    Options = QVLMOptions
    needs_calibration = True
    reproduction = REPRODUCTION

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Measure dependencies, partition, search."""
        return _Run(transformer, ctx).quantize_()


class _Run:
    """One quantization: the state that the two walks share."""

    def __init__(self, transformer: nn.Module, ctx: QuantContext) -> None:
        self.transformer, self.ctx = transformer, ctx
        self.options: QVLMOptions = ctx.options
        self.nodes = nodes_of(ctx.family, transformer)

    def quantize_(self) -> QuantReport:
        """Survey in full precision, partition, search block by block."""
        started, chosen = time.perf_counter(), self.options
        samples = uniform_samples(self.ctx.calibration, chosen.samples, chosen.timesteps)
        dependencies, ranges, surveyed = self.measure(samples)
        pieces, threshold = self.pieces(dependencies)
        searched = over_trajectory(samples, chosen.search_samples)
        walk = Walk(self.transformer, self.ctx, searched, inputs="quantized", verb="searching")
        search = JointSearch(self.transformer, self.ctx, self.nodes, ranges)
        walk.carry(search=search)
        for step in walk:
            search.search_block_(step, pieces)
        report = walk.report(
            steps=-(-search.block_runs // len(search.blocks)),
            notes=[*shortage(samples, chosen.samples), *self.notes(pieces, threshold)],
            curves=self.curves(dependencies, pieces, search),
        )
        return dataclasses.replace(
            report,
            calibration_forwards=report.calibration_forwards + surveyed,
            calibration_samples=len(samples if surveyed else searched),
            seconds=time.perf_counter() - started,
        )

    def measure(self, samples: Sequence[Sample]) -> tuple[list[float | None], Ranges, int]:
        """Dependencies and static ranges where the options need them.

        Returns:
            Both, and the denoiser evaluations that they took.
        """
        static = self.options.activations == "static"
        if self.options.partition == "greedy" and not static:
            return [None] * (len(self.nodes) - 1), {}, 0
        walk = Walk(self.transformer, self.ctx, samples, verb="surveying")
        dependencies, ranges = survey(walk, self.nodes, static=static)
        spent = walk.report(passes=2 if static else 1).calibration_forwards
        return dependencies, ranges, spent - self.ctx.calibration.forwards

    def pieces(self, dependencies: Sequence[float | None]) -> tuple[list[list[int]], float]:
        """Blocks of nodes, and the threshold that made them."""
        if self.options.partition == "greedy":
            return [[i] for i in range(len(self.nodes))], math.inf
        if self.options.partition == "fixed":
            linked = [None if d is None else 1.0 for d in dependencies]
            return partition(linked, 0.0, self.options.length), 0.0
        threshold = dependency_threshold(dependencies, self.options.threshold)
        return partition(dependencies, threshold, self.options.length), threshold

    def notes(self, pieces: Sequence[list[int]], threshold: float) -> list[str]:
        """What the partition looks like, and what was left out."""
        counts = [sum(len(p) == n for p in pieces) for n in range(1, LONGEST + 1)]
        sizes = ", ".join(f"{count} of {n}" for n, count in enumerate(counts, 1) if count)
        rule = f", h_0 = {threshold:.3f} nats" if self.options.partition == "entropy" else ""
        return [
            f"{len(self.nodes)} nodes in {len(pieces)} blocks ({sizes}){rule}",
            "no visual-encoder optimisation: text-to-video has no visual encoder",
        ]

    def curves(
        self,
        dependencies: Sequence[float | None],
        pieces: Sequence[list[int]],
        search: JointSearch,
    ) -> dict[str, list[float]]:
        """Dependencies, block lengths, chosen candidates, errors."""
        grid = PERCENTILES if search.ranges else RATIOS
        chosen = [search.chosen[i] for i in range(len(self.nodes))]
        return {
            "dependency": [math.nan if d is None else d for d in dependencies],
            "block_length": [float(len(piece)) for piece in pieces],
            "activation_clip": [grid[c.activation] for c in chosen],
            "weight_clip": [RATIOS[c.weight] for c in chosen],
            "block_error": search.errors,
        }
