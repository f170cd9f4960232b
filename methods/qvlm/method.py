"""Q-VLM: joint search of quantizers inside blocks of dependent layers.

Q-VLM: Post-training Quantization for Large Vision-Language Models, arXiv 2410.08119, NeurIPS 2024,
ported from a language model to a denoiser. In four steps:
1. Dependency of neighbouring layers: entropy of the one's activation codes given the other's.
2. Layers whose mean dependency exceeds a threshold form a block of at most three (eq. 4-7).
3. The clipping of all layers of a block is searched jointly for the smallest error at the block's
   output (eq. 3), on the inputs that the quantized layers before it deliver.
4. Everything else is rounded to nearest.
Layers are the nodes of ``blocks``, which has the formulas; ``search`` has the search.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.api import (
    BitSpec,
    Deviation,
    QuantContext,
    QuantReport,
    Reproduction,
    Unsupported,
)
from harness.quant.calibration.capture import BRANCHES, observing, run_block
from harness.quant.calibration.salience import shortage
from harness.quant.calibration.samples import uniform_samples
from harness.quant.calibration.statistics import sample_values
from harness.quant.calibration.walk import Walk, block_groups
from harness.quant.layers.activation import ActivationSpec, activation_codes
from harness.quant.layers.apply import MODULATION
from harness.quant.options import check_choice, check_range
from methods.qvlm.blocks import (
    CHANNELS,
    LEVELS,
    LONGEST,
    begins_node,
    conditional_entropy,
    dependency_threshold,
    nodes_of,
    over_trajectory,
    partition,
    thin,
)
from methods.qvlm.search import PERCENTILES, RATIOS, JointSearch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.models.block_input import BlockInput
    from harness.quant.calibration.walk import WalkedBlock


@dataclass(frozen=True, kw_only=True, slots=True)
class QVLMOptions:
    """Knobs of Q-VLM.

    Attributes:
        partition: ``entropy``; ``greedy`` searches each node by itself (the paper's row without
            cross-layer dependency); ``fixed`` takes every ``length`` nodes without asking.
        length: Most nodes in a block.
        threshold: h_0 is the ``mean`` or the ``median`` of the dependencies.
        activations: ``dynamic`` per token with a searched factor on the range, or ``static`` per
            tensor with searched percentiles.
        search: ``activations``, or ``both`` for a factor on the weights' range too.
        samples: (prompt, timestep) samples of the dependencies and static ranges.
        timesteps: Equally spaced timesteps they come from.
        search_samples: How many of them the search sees.
        branches: Guidance branches of a sample: ``both``, ``alternate`` or ``cond``.
        modulation: ``w`` quantizes the weights of modulation linears, ``fp`` leaves them out.
    """

    partition: str = "entropy"
    length: int = LONGEST
    threshold: str = "mean"
    activations: str = "dynamic"
    search: str = "activations"
    samples: int = 40
    timesteps: int = 10
    search_samples: int = 8
    branches: str = "alternate"
    modulation: str = "w"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: A value is unknown or out of range.
        """
        check_choice("partition", self.partition, ("entropy", "greedy", "fixed"))
        check_range("length", self.length, 1, LONGEST)
        check_choice("threshold", self.threshold, ("mean", "median"))
        check_choice("activations", self.activations, ("dynamic", "static"))
        check_choice("search", self.search, ("activations", "both"))
        for option in ("samples", "timesteps", "search_samples"):
            check_range(option, getattr(self, option), 1)
        check_choice("branches", self.branches, BRANCHES)
        check_choice("modulation", self.modulation, MODULATION)


_DEVIATIONS = (
    Deviation(
        kind="adaptation",
        what="layers are the sub-layer inputs of a denoiser block (attention input and output, "
        "cross-attention query, feed-forward input); the second feed-forward linear follows the "
        "first, text keys and values follow their query, the linears of a text stream those of "
        "the video stream",
        why="the paper treats language models; the dependency pairs elements of neighbours, which "
        "must have one shape",
    ),
    Deviation(
        kind="deviation",
        what="no visual-encoder optimisation (VEO, eq. 8-10)",
        why="text-to-video has no visual encoder",
    ),
    Deviation(
        kind="deviation",
        what="activations are dynamic and asymmetric per token for text and video alike, with one "
        "searched factor a node; static per-tensor percentiles (the paper's 1.0 ... 0.98) as "
        "option; the paper has per-channel activations in the language model and per-token ones "
        "in the vision encoder",
        why="per-channel steps lie inside the sum of a matrix product and have no integer kernel",
    ),
    Deviation(
        kind="reconstructed",
        what="dynamic factors 1, .95, .9, .85, .8; the search of weight factors is an option",
        why="the paper's grid is one of percentiles of a static range; whether its search covers "
        "weights is not said",
    ),
    Deviation(
        kind="reconstructed",
        what="weights are uniform, asymmetric, per output channel, their range found by the least "
        "squared error; the released code has NF4 in blocks of 64 from bitsandbytes and searches "
        "nothing there",
        why="the paper has uniform quantizers and begins with ranges of least l_p distance",
    ),
    Deviation(
        kind="reconstructed",
        what="dependency from hard 4-bit codes: one joint 16 x 16 histogram a sample over up to "
        "4096 tokens x 256 channels, per element, mean over samples; the paper has soft "
        "codes and a sum over elements",
        why="a mean makes the threshold comparable between models; the soft form matters only "
        "where it is differentiated",
    ),
    Deviation(
        kind="reconstructed",
        what="h_0 is the mean of all dependencies ('median' as option), blocks grow from left to "
        "right, the dependency of a block is summed over the pairs inside it",
        why="h_0 is not published, and as printed the sum has one pair more than its threshold "
        "has steps",
    ),
    Deviation(
        kind="adaptation",
        what="a block ends where neighbours have different shapes (streams that merge) or their "
        "tokens are rearranged (spatial and temporal attention)",
        why="the dependency is undefined there",
    ),
    Deviation(
        kind="reconstructed",
        what="the block output of eq. 3 is the input of the next node, or the output of the "
        "transformer block where that ends; the target comes from the full-precision prefix; "
        "exhaustive up to 125 combinations, two sweeps of coordinate descent above",
        why="the paper does not say how the search is run",
    ),
    Deviation(
        kind="deviation",
        what="the objective sees at most 4096 evenly spaced tokens of a tensor, static percentiles "
        "about 8000 evenly spaced values of a sample; while a block of nodes reaches into the next "
        "transformer block, that one's modulation linears are still in full precision",
        why="memory and time on video; the next transformer block is quantized when its turn comes",
    ),
    Deviation(
        kind="deviation",
        what="the joint search is done as in the paper; the released code has none: ranges of "
        "chosen layers are shrunk one by one for the error of their own output, the entropy is "
        "taken of normalised magnitudes, and every third layer is always searched",
        why="the release is another algorithm than the paper",
    ),
    Deviation(
        kind="adaptation",
        what="40 samples, 10 equally spaced timesteps, one guidance branch each in turn; the "
        "search sees 8 of them; the paper has 64 image-text pairs",
        why="the same calibration budget as every method",
    ),
)


class QVLM:
    """Entropy-guided partition, joint clipping search."""

    name = "qvlm"
    version = 1
    Options = QVLMOptions
    needs_calibration = True
    unquantized = False
    reproduction = Reproduction(
        title="Q-VLM: Post-training Quantization for Large Vision-Language Models",
        source="arXiv 2410.08119 (NeurIPS 2024)",
        code="https://github.com/ChangyuanWang17/QVLM (no joint search in it)",
        rows=(
            "LLaVA-7B ScienceQA W4A4: 79.79 (fp 89.81); 78.66 without VEO, 77.53 without both",
            "LLaVA-7B ScienceQA W6A6: 89.34",
            "no row on a diffusion model is published",
        ),
        deviations=_DEVIATIONS,
    )

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        """Every family and width."""
        return None

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        """Measure dependencies, partition, search."""
        return _Run(transformer, ctx).quantize_()


class _Run:
    """One quantization: the state that the two walks share."""

    def __init__(self, transformer: nn.Module, ctx: QuantContext) -> None:
        self.transformer, self.ctx, self.family = transformer, ctx, ctx.family
        self.options: QVLMOptions = ctx.options
        self.nodes = nodes_of(ctx.family, transformer)
        self.ranges: dict[str, list[tuple[float, float]]] = {}

    def quantize_(self) -> QuantReport:
        """Survey in full precision, partition, search block by block."""
        started, options, pool = time.perf_counter(), self.options, self.ctx.calibration
        samples = uniform_samples(pool, options.samples, options.timesteps)
        searched = over_trajectory(samples, options.search_samples)
        dependencies: list[float | None] = [None] * (len(self.nodes) - 1)
        surveyed = 0
        if options.partition != "greedy" or options.activations == "static":
            survey = Walk(
                self.transformer, self.ctx, samples, branches=options.branches, verb="surveying"
            )
            dependencies = self.dependencies(survey)
            passes = 2 if options.activations == "static" else 1
            surveyed = survey.report(passes=passes).calibration_forwards - pool.forwards
        pieces, threshold = self.pieces(dependencies)
        walk = Walk(
            self.transformer, self.ctx, searched, branches=options.branches, inputs="quantized",
            verb="searching",
        )  # fmt: skip
        search = JointSearch(self.transformer, self.ctx, self.nodes, self.ranges)
        for step in walk:
            search.search_block_(step, pieces)
        report = walk.report(
            steps=-(-search.block_runs // len(self.family.blocks(self.transformer))),
            notes=[*shortage(samples, options.samples), *self.notes(pieces, threshold)],
            curves=self.curves(dependencies, pieces, search),
        )
        return dataclasses.replace(
            report,
            calibration_forwards=report.calibration_forwards + surveyed,
            calibration_samples=len(samples if surveyed else searched),
            seconds=time.perf_counter() - started,
        )

    @torch.no_grad()
    def dependencies(self, survey: Walk) -> list[float | None]:
        """D(k, k + 1) of all neighbours; static ranges on the way."""
        spec = ActivationSpec(bits=(LEVELS - 1).bit_length(), symmetric=False)
        sums: list[list[float]] = [[] for _ in self.nodes[1:]]
        before: list[Tensor] = []
        outputs: dict[str, Tensor] = {}
        for step in survey:
            if self.options.activations == "static":
                self.static_ranges(step)
            own = [i for i, node in enumerate(self.nodes) if node.block == step.index]
            handed_on = _same(outputs, step.inputs[0].streams)
            outputs, last = step.targets[0].streams, before
            before = []
            for s, given in enumerate(step.inputs):
                seen = self.node_inputs(step.block, given)
                codes = [
                    thin(
                        activation_codes(thin(seen[self.nodes[i].head]).float(), spec).byte(),
                        channels=CHANNELS,
                    )
                    for i in own
                ]
                if handed_on:
                    codes.insert(0, last[s])
                for i, (a, b) in zip(own[not handed_on :], itertools.pairwise(codes), strict=True):
                    if a.shape == b.shape:
                        sums[i - 1].append(conditional_entropy(a, b))
                before.append(codes[-1])
        return [sum(values) / len(values) if values else None for values in sums]

    def node_inputs(self, block: nn.Module, given: BlockInput) -> dict[str, Tensor]:
        """Inputs of the heads of a block, by linear."""
        seen: dict[str, Tensor] = {}
        heads = [g.linears[0] for g in self.family.groups(block) if begins_node(g)]
        with observing(block, heads, seen.__setitem__):
            run_block(block, self.family, given)
        return seen

    def static_ranges(self, step: WalkedBlock) -> None:
        """Percentile pairs of every token input."""
        values = sample_values(step.block, self.family, step.inputs, {})
        for group in block_groups(self.family, step.block, "fp"):
            self.ranges[f"{step.name}.{group.name}"] = [
                (float(values[group.name].quantile(1 - p)), float(values[group.name].quantile(p)))
                for p in PERCENTILES
            ]

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
        grid = PERCENTILES if self.ranges else RATIOS
        chosen = [search.chosen[i] for i in range(len(self.nodes))]
        return {
            "dependency": [math.nan if d is None else d for d in dependencies],
            "block_length": [float(len(piece)) for piece in pieces],
            "activation_clip": [grid[c.activation] for c in chosen],
            "weight_clip": [RATIOS[c.weight] for c in chosen],
            "block_error": search.errors,
        }


def _same(before: dict[str, Tensor], now: dict[str, Tensor]) -> bool:
    """Whether a transformer block hands its streams to the next one as they are."""
    return before.keys() == now.keys() and all(torch.equal(before[k], now[k]) for k in now)
