"""What Q-VLM (arXiv 2410.08119) measures in full precision before it searches.

One walk of the denoiser gives the dependency of all neighbouring nodes and, where activations are
static, the percentile ranges that the search chooses from.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from harness.quant import ActivationSpec, activation_codes, observing, run_block, sample_values
from methods.qvlm.blocks import CHANNELS, LEVELS, begins_node, conditional_entropy, thin
from methods.qvlm.search import PERCENTILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.quant import BlockInput, Family, Walk, WalkedBlock
    from methods.qvlm.blocks import Node

Ranges = dict[str, list[tuple[float, float]]]
"""Candidates of a static range by input group, qualified by its transformer block."""


@torch.no_grad()
def survey(walk: Walk, nodes: Sequence[Node], *, static: bool) -> tuple[list[float | None], Ranges]:
    """Measure the dependencies D(k, k + 1) of all neighbours, and static ranges on the way.

    Args:
        walk: Of the full-precision denoiser.
        nodes: All nodes in execution order.
        static: Take percentile ranges too.

    Returns:
        Mean dependency over samples, None where it is undefined; candidates of static ranges.
    """
    sums: list[list[float]] = [[] for _ in nodes[1:]]
    ranges: Ranges = {}
    before: list[Tensor] = []
    outputs: dict[str, Tensor] = {}
    walk.carry(sums=sums, ranges=ranges, before=before, outputs=outputs)
    for step in walk:
        if static:
            ranges |= static_ranges(step)
        own = [i for i, node in enumerate(nodes) if node.block == step.index]
        handed_on = _same(outputs, step.inputs[0].streams)
        outputs.clear()
        outputs |= step.targets[0].streams
        last = list(before)
        before.clear()
        for s, given in enumerate(step.inputs):
            seen = node_inputs(step.block, walk.ctx.family, given)
            codes = [node_codes(seen[nodes[i].head]) for i in own]
            if handed_on:
                codes.insert(0, last[s])
            for i, (a, b) in zip(own[not handed_on :], itertools.pairwise(codes), strict=True):
                if a.shape == b.shape:
                    sums[i - 1].append(conditional_entropy(a, b))
            before.append(codes[-1])
    return [sum(values) / len(values) if values else None for values in sums], ranges


def node_inputs(block: nn.Module, family: Family, given: BlockInput) -> dict[str, Tensor]:
    """Inputs of the heads of a block, by linear."""
    seen: dict[str, Tensor] = {}
    heads = [g.linears[0] for g in family.groups(block) if begins_node(g)]
    with observing(block, heads, seen.__setitem__):
        run_block(block, family, given)
    return seen


def node_codes(x: Tensor) -> Tensor:
    """Activation codes of a node's input, thinned to what the dependency is measured on."""
    spec = ActivationSpec(bits=(LEVELS - 1).bit_length(), symmetric=False)
    return thin(activation_codes(thin(x).float(), spec).byte(), channels=CHANNELS)


def static_ranges(step: WalkedBlock) -> Ranges:
    """Percentile pairs of every token input of a block."""
    values = sample_values(step.block, step.walk.ctx.family, step.inputs, {})
    return {
        f"{step.name}.{group.name}": [
            (float(values[group.name].quantile(1 - p)), float(values[group.name].quantile(p)))
            for p in PERCENTILES
        ]
        for group in step.groups
        if not group.modulation
    }


def _same(before: dict[str, Tensor], now: dict[str, Tensor]) -> bool:
    """Whether a transformer block hands its streams to the next one as they are."""
    return before.keys() == now.keys() and all(torch.equal(before[k], now[k]) for k in now)
