"""Blocks of dependent nodes in Q-VLM (arXiv 2410.08119): dependency, partition, joint search.

A *node* is what the paper calls a layer: a sub-layer input of the residual width (attention input,
attention output, cross-attention query, feed-forward input) with the linears that depend on it.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from harness.quant import Family, InputGroup, Role, Sample

LEVELS = 16  # M, number of codes: those of 4 bits, at every width of the row
LONGEST = 3  # Q-VLM: longer blocks bring little
EXHAUSTIVE = 5**LONGEST
"""Combinations up to which all are tried: five candidates in each of three nodes."""
SWEEPS = 2
TOKENS, CHANNELS = 4096, 256
"""Tokens and channels of a tensor that dependency and objective are measured on."""
HEADS: tuple[Role, ...] = (
    "attention_in",
    "attention_feed_forward_in",
    "attention_out",
    "cross_attention_query",
    "feed_forward_in",
)
"""Inputs of the residual width. Those that hold video tokens begin a node; any other input, and
those of a text stream of its own, follow the node before them."""


def conditional_entropy(first: Tensor, second: Tensor, levels: int = LEVELS) -> float:
    """D = H(second | first) = sum p(a, b) log(p(a) / p(b, a)), in nats an element (eq. 4-7).

    Args:
        first: Codes 0 .. levels - 1, any shape.
        second: Codes of the next node at the same elements.
        levels: Number of codes.
    """
    pairs = first.flatten().long() * levels + second.flatten().long()
    joint = torch.bincount(pairs, minlength=levels**2).double().reshape(levels, levels)
    joint /= pairs.numel()
    marginal = joint.sum(1, keepdim=True).expand_as(joint)
    seen = joint > 0
    return float((joint[seen] * (marginal[seen] / joint[seen]).log()).sum())


def dependency_threshold(dependencies: Sequence[float | None], rule: str) -> float:
    """h_0: mean or median of the dependencies that are defined."""
    defined = torch.tensor([d for d in dependencies if d is not None], dtype=torch.float64)
    if not len(defined):
        return math.inf
    return float(defined.quantile(0.5) if rule == "median" else defined.mean())


def partition(
    dependencies: Sequence[float | None], threshold: float, length: int = LONGEST
) -> list[list[int]]:
    """Blocks of nodes: extended while the mean dependency inside exceeds h_0 (eq. 4-7).

    Args:
        dependencies: D(k, k + 1) of neighbours; None where it is undefined and a block must end.
        threshold: h_0.
        length: Most nodes in a block.

    Returns:
        Indices of the nodes of every block; one more node than dependencies in all.
    """
    blocks, total = [[0]], 0.0
    for k, dependency in enumerate(dependencies):
        current = blocks[-1]
        inside = None if dependency is None else total + dependency
        if inside is not None and len(current) < length and inside > len(current) * threshold:
            current.append(k + 1)
            total = inside
        else:
            blocks.append([k + 1])
            total = 0.0
    return blocks


def joint_search(
    sizes: Sequence[int],
    error: Callable[[tuple[int, ...]], float],
    *,
    limit: int = EXHAUSTIVE,
    sweeps: int = SWEEPS,
) -> tuple[int, ...]:
    """Choose one candidate for each variable together; of equals the first.

    Args:
        sizes: Number of candidates of each variable.
        error: Error of a choice.
        limit: All combinations are tried up to this number, above it each variable in turn.
        sweeps: How often then.
    """
    if math.prod(sizes) <= limit:
        return min(itertools.product(*map(range, sizes)), key=error)
    best = (0,) * len(sizes)
    for _ in range(sweeps):
        for i, size in enumerate(sizes):
            tried = [(*best[:i], choice, *best[i + 1 :]) for choice in range(size)]
            best = min(tried, key=error)
    return best


def thin(x: Tensor, tokens: int = TOKENS, channels: int | None = None) -> Tensor:
    """Evenly spaced tokens and channels of ``[..., tokens, width]``, as ``[tokens, width]``."""
    rows = x.reshape(-1, x.shape[-1])
    rows = rows[:: -(-rows.shape[0] // tokens)]
    return rows if channels is None else rows[:, :: -(-rows.shape[1] // channels)]


def over_trajectory(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most ``count`` of the samples, evenly spaced from the first timestep to the last."""
    ordered = sorted(samples, key=lambda sample: (sample.step, sample.prompt))
    picks = torch.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().long()
    return sorted(ordered[i] for i in picks.tolist())


class Node(NamedTuple):
    """A sub-layer input with the linears that depend on it.

    Attributes:
        block: Index of the transformer block.
        head: The linear whose input it is, relative to the block.
        groups: Input groups that share its clipping.
    """

    block: int
    head: str
    groups: tuple[InputGroup, ...]


def begins_node(group: InputGroup) -> bool:
    """Whether a node begins at an input."""
    return group.role in HEADS and group.stream != "text"


def nodes_of(family: Family, transformer: nn.Module) -> list[Node]:
    """All nodes in execution order."""
    found: list[Node] = []
    for index, (_, block) in enumerate(family.blocks(transformer)):
        for group in family.groups(block):
            if group.modulation:
                continue
            if begins_node(group):
                found.append(Node(index, group.linears[0], (group,)))
            else:
                found[-1] = found[-1]._replace(groups=(*found[-1].groups, group))
    return found
