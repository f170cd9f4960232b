"""The joint clipping search of Q-VLM (arXiv 2410.08119) over one walk of the denoiser."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from harness.api import IDENTITY_WIDTH
from harness.quant import (
    ActivationSpec,
    QuantLinear,
    WeightSpec,
    observing,
    quantize_linear,
    replace_module_,
    run_block,
    search_clip,
)
from methods.qvlm.blocks import joint_search, thin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from harness.api import QuantContext
    from harness.quant import BlockInput, InputGroup, WalkedBlock
    from methods.qvlm.blocks import Node

PERCENTILES = (1.0, 0.995, 0.99, 0.985, 0.98)  # Q-VLM: searched clipping percentiles
RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Factors on a dynamic range, and on a weight's."""


class Clip(NamedTuple):
    """Index of a node's activation candidate and of its weight candidate."""

    activation: int = 0
    weight: int = 0


class _Reached(Exception):
    """The forward pass came to the tensor that was asked for."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class JointSearch:
    """Searches the clips of blocks of nodes while the denoiser is walked.

    Args:
        transformer: The denoiser.
        ctx: Context of the method.
        nodes: All nodes in execution order.
        ranges: Candidates of a static range by input group, qualified by its transformer block;
            empty for dynamic ranges.

    Attributes:
        chosen: Clip of every node that is decided.
        errors: Relative squared error at the output of every block of nodes.
        block_runs: Transformer blocks run so far, one sample each.
    """

    def __init__(
        self,
        transformer: nn.Module,
        ctx: QuantContext,
        nodes: Sequence[Node],
        ranges: Mapping[str, Sequence[tuple[float, float]]],
    ) -> None:
        self.transformer, self.ctx, self.family = transformer, ctx, ctx.family
        self.options = ctx.options
        self.blocks = ctx.family.blocks(transformer)
        self.nodes, self.ranges = nodes, ranges
        self.chosen: dict[int, Clip] = {}
        self.errors: list[float] = []
        self.block_runs = 0
        self.originals: dict[str, nn.Linear] = {}
        self.clips: dict[str, Tensor] = {}

    @torch.no_grad()
    def search_block_(self, step: WalkedBlock, pieces: Sequence[list[int]]) -> None:
        """Decide and replace what begins in a transformer block, in place."""
        here = [piece for piece in pieces if self.nodes[piece[0]].block == step.index]
        given = list(step.given)
        targets = [[self.reach(piece, fp) for fp in step.inputs] for piece in here]
        for group in step.groups:
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
        if self.ranges:
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

    def state_dict(self) -> dict[str, Any]:
        """What was decided so far; full-precision weights are read again."""
        chosen = {i: tuple(clip) for i, clip in self.chosen.items()}
        return {"chosen": chosen, "errors": self.errors, "block_runs": self.block_runs}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Take over what was decided before the search was ended."""
        self.chosen = {i: Clip(*clip) for i, clip in found["chosen"].items()}
        self.errors, self.block_runs = list(found["errors"]), found["block_runs"]

    def forget(self, block: str) -> None:
        """Let the full-precision weights of a decided transformer block go."""
        for name in [n for n in self.originals if n.startswith(f"{block}.")]:
            del self.originals[name]
            self.clips.pop(name, None)
