"""Q-VLM: joint search of quantizers inside blocks of dependent layers.

Q-VLM: Post-training Quantization for Large Vision-Language Models, arXiv 2410.08119, NeurIPS 2024,
ported from a language model to a denoiser. In four steps:
1. Dependency of neighbouring layers: entropy of the one's activation codes given the other's.
2. Layers whose mean dependency exceeds a threshold form a block of at most three (eq. 4-7).
3. The clipping of all layers of a block is searched jointly for the smallest error at the block's
   output (eq. 3), on the inputs that the quantized layers before it deliver.
4. Everything else is rounded to nearest.
Layers are the nodes of ``qvlm_blocks``, which has the formulas.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from harness.api import (
    IDENTITY_WIDTH,
    BitSpec,
    Deviation,
    QuantContext,
    QuantReport,
    Reproduction,
    Unsupported,
)
from harness.quant.activation import ActivationSpec, activation_codes
from harness.quant.apply import MODULATION
from harness.quant.artifact import replace_module_
from harness.quant.capture import BRANCHES, BlockInput, observing, run_block
from harness.quant.clip import search_clip
from harness.quant.linear import QuantLinear, WeightSpec, quantize_linear
from harness.quant.options import check_choice, check_range
from harness.quant.salience import shortage
from harness.quant.samples import uniform_samples
from harness.quant.statistics import sample_values
from harness.quant.walk import Walk, block_groups
from methods.qvlm_blocks import (
    CHANNELS,
    HEADS,
    LEVELS,
    LONGEST,
    conditional_entropy,
    dependency_threshold,
    joint_search,
    nodes_of,
    over_trajectory,
    partition,
    thin,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.models.families.base import InputGroup
    from harness.quant.walk import WalkedBlock

PERCENTILES = (1.0, 0.995, 0.99, 0.985, 0.98)  # Q-VLM: searched clipping percentiles
RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8)


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


class Clip(NamedTuple):
    """Index of a node's activation candidate and of its weight candidate."""

    activation: int = 0
    weight: int = 0


class _Reached(Exception):
    """The forward pass came to the tensor that was asked for."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class _Run:
    """One quantization: the state that the two walks share."""

    def __init__(self, transformer: nn.Module, ctx: QuantContext) -> None:
        self.transformer, self.ctx, self.family = transformer, ctx, ctx.family
        self.options: QVLMOptions = ctx.options
        self.blocks = ctx.family.blocks(transformer)
        self.nodes = nodes_of(ctx.family, transformer)
        self.chosen: dict[int, Clip] = {}
        self.ranges: dict[str, list[tuple[float, float]]] = {}
        self.originals: dict[str, nn.Linear] = {}
        self.clips: dict[str, Tensor] = {}
        self.block_runs = 0
        self.errors: list[float] = []

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
        for step in walk:
            self.search_block_(step, pieces)
        report = walk.report(
            steps=-(-self.block_runs // len(self.blocks)),
            notes=[*shortage(samples, options.samples), *self.notes(pieces, threshold)],
            curves=self.curves(dependencies, pieces),
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
        heads = [g.linears[0] for g in self.family.groups(block) if g.name in HEADS]
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

    @torch.no_grad()
    def search_block_(self, step: WalkedBlock, pieces: Sequence[list[int]]) -> None:
        """Decide and replace what begins in a transformer block, in place."""
        here = [piece for piece in pieces if self.nodes[piece[0]].block == step.index]
        given = list(step.given)
        targets = [[self.reach(piece, fp) for fp in step.inputs] for piece in here]
        for group in block_groups(self.family, step.block, self.options.modulation):
            if group.modulation:
                self.quantize_group_(step.index, group, Clip(), IDENTITY_WIDTH)
        for i in self.members(step.index):  # decided where their piece began
            if i in self.chosen:
                self.set_(i, self.chosen[i])
        for piece, target in zip(here, targets, strict=True):
            self.search_(piece, given, target)
            for i in piece:
                if self.nodes[i].block != step.index:
                    self.restore_(i)
        self.forget(step.name)

    def search_(
        self, piece: Sequence[int], given: Sequence[BlockInput], target: Sequence[Sequence[Tensor]]
    ) -> None:
        """Joint search of the clipping of a block of nodes; leaves the best in place."""
        bits, options = self.ctx.bits, self.options
        activations = 1 if bits.a == IDENTITY_WIDTH else len(RATIOS)
        weights = 1 if bits.w == IDENTITY_WIDTH or options.search != "both" else len(RATIOS)
        sizes = [activations] * len(piece) + [weights] * len(piece)
        scale = sum(float(t.square().sum()) for sample in target for t in sample)
        measured: dict[tuple[int, ...], float] = {}

        def error(choice: tuple[int, ...]) -> float:
            if choice not in measured:
                self.set_piece_(piece, choice)
                found = [self.reach(piece, one) for one in given]
                measured[choice] = sum(
                    float((a - b).square().sum())
                    for sample, exact in zip(found, target, strict=True)
                    for a, b in zip(sample, exact, strict=True)
                ) / max(scale, torch.finfo(torch.float32).tiny)
            return measured[choice]

        best = (0,) * len(sizes) if max(sizes) == 1 else joint_search(sizes, error)
        self.set_piece_(piece, best)
        self.errors.append(measured.get(best, math.nan))

    def reach(self, piece: Sequence[int], given: BlockInput) -> list[Tensor]:
        """Output of a block of nodes: the next node's input, or the transformer block's output."""
        first, last = self.nodes[piece[0]].block, self.nodes[piece[-1]].block
        for index in range(first, last):
            self.block_runs += 1
            out = run_block(self.blocks[index][1], self.family, given)
            given = self.family.advance(self.transformer, index, given.with_streams(out), out)
        self.block_runs += 1
        following = piece[-1] + 1
        block = self.blocks[last][1]
        if following == len(self.nodes) or self.nodes[following].block != last:
            return [thin(v).float() for v in run_block(block, self.family, given).values()]

        def stop(_: str, x: Tensor) -> None:
            raise _Reached(x)

        try:
            with observing(block, [self.nodes[following].head], stop):
                run_block(block, self.family, given)
        except _Reached as reached:
            return [thin(reached.value).float()]
        raise RuntimeError(f"'{self.nodes[following].head}' was not run by its block")

    def members(self, block: int) -> list[int]:
        """Nodes of a transformer block."""
        return [i for i, node in enumerate(self.nodes) if node.block == block]

    def set_piece_(self, piece: Sequence[int], choice: Sequence[int]) -> None:
        """Put every node of a block at its candidates."""
        for i, a, w in zip(piece, choice[: len(piece)], choice[len(piece) :], strict=True):
            if self.chosen.get(i) != Clip(a, w) or not self.in_place(i):
                self.set_(i, Clip(a, w))

    def in_place(self, i: int) -> bool:
        """Whether a node's linears are quantized at the moment."""
        _, block = self.blocks[self.nodes[i].block]
        return isinstance(block.get_submodule(self.nodes[i].head), QuantLinear)

    def set_(self, i: int, clip: Clip) -> None:
        """Quantize the linears of a node at a clip, in place; round only what changed."""
        stale = self.chosen.get(i, clip).weight != clip.weight
        for group in self.nodes[i].groups:
            self.quantize_group_(self.nodes[i].block, group, clip, self.ctx.bits.a, stale=stale)
        self.chosen[i] = clip

    def quantize_group_(
        self, index: int, group: InputGroup, clip: Clip, bits: int, *, stale: bool = True
    ) -> None:
        """Quantize the linears that read one input, in place.

        Args:
            index: Transformer block.
            group: The linears.
            clip: Candidates.
            bits: Activation width.
            stale: Round weights again that are quantized already.
        """
        name, block = self.blocks[index]
        spec = self.activation(f"{name}.{group.name}", clip.activation, bits)
        for linear in group.linears:
            module = block.get_submodule(linear)
            if isinstance(module, QuantLinear) and not stale:
                module.activation_spec = spec
            else:
                rounded = self.rounded(f"{name}.{linear}", module, clip, spec)
                replace_module_(block, linear, rounded)

    def rounded(
        self, name: str, module: nn.Module, clip: Clip, activation: ActivationSpec
    ) -> QuantLinear:
        """Round a linear; its range begins at the least squared error."""
        weight = WeightSpec(bits=self.ctx.bits.w, symmetric=False)
        if name not in self.originals:
            self.originals[name] = cast("nn.Linear", module)
            if weight.bits != IDENTITY_WIDTH:
                value = self.originals[name].weight.detach().float()
                self.clips[name] = search_clip(value, weight.bits, symmetric=False)
        factor = self.clips[name] * RATIOS[clip.weight] if name in self.clips else 1.0
        return quantize_linear(self.originals[name], weight, activation, clip=factor)

    def activation(self, group: str, candidate: int, bits: int) -> ActivationSpec:
        """Quantizer of an input at one of its candidates."""
        if bits == IDENTITY_WIDTH:
            return ActivationSpec(bits=IDENTITY_WIDTH)
        if self.options.activations == "static":
            low, high = self.ranges[group][candidate]
            return ActivationSpec(bits=bits, symmetric=False, static_low=low, static_high=high)
        ratio = RATIOS[candidate]
        return ActivationSpec(bits=bits, symmetric=False, clip_low=ratio, clip_high=ratio)

    def restore_(self, i: int) -> None:
        """Put the full-precision linears of a node back; its clip stays chosen."""
        name, block = self.blocks[self.nodes[i].block]
        for group in self.nodes[i].groups:
            for linear in group.linears:
                replace_module_(block, linear, self.originals[f"{name}.{linear}"])

    def forget(self, block: str) -> None:
        """Let the full-precision weights of a decided transformer block go."""
        for name in [n for n in self.originals if n.startswith(f"{block}.")]:
            del self.originals[name]
            self.clips.pop(name, None)

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
        self, dependencies: Sequence[float | None], pieces: Sequence[list[int]]
    ) -> dict[str, list[float]]:
        """Dependencies, block lengths, chosen candidates, errors."""
        static = self.options.activations == "static"
        grid = PERCENTILES if static else RATIOS
        return {
            "dependency": [math.nan if d is None else d for d in dependencies],
            "block_length": [float(len(piece)) for piece in pieces],
            "activation_clip": [grid[c.activation] for _, c in sorted(self.chosen.items())],
            "weight_clip": [RATIOS[c.weight] for _, c in sorted(self.chosen.items())],
            "block_error": self.errors,
        }


def _same(before: dict[str, Tensor], now: dict[str, Tensor]) -> bool:
    """Whether a transformer block hands its streams to the next one as they are."""
    return before.keys() == now.keys() and all(torch.equal(before[k], now[k]) for k in now)
