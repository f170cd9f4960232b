"""Which layer keeps 8 bits when, in ViDiT-Q's mixed precision (arXiv 2406.02540).

The error of the denoiser's output gives every group of layers a share of the bit budget; within a
group the most damaging (layer, quarter) pairs are raised until its share is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from methods.viditq.quarters import QUARTERS, steps_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from methods.viditq.sensitivity import Layer, Measured

RAISED = 8  # ViDiT-Q W4A8-MP: sensitive layers take 8-bit weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A layer in a quarter of the trajectory.

    Attributes:
        layer: Index of the layer.
        quarter: 0 is the noisiest.
        group: Layer group.
        cost: What raising it costs: extra bits x weights x steps.
        error: Relative squared error of the denoiser's output with this layer alone quantized.
        damage: The group's metric of the same.
    """

    layer: int
    quarter: int
    group: str
    cost: float
    error: float
    damage: float


def group_budgets(
    budget: float, error: Mapping[str, float], capacity: Mapping[str, float]
) -> dict[str, float]:
    """Share a budget in proportion to the error that each group causes.

    No group gets more than it can use; what it leaves goes to the others, in the same proportion.

    Args:
        budget: To be shared.
        error: Summed output error by group.
        capacity: Cost of raising the whole group.
    """
    shares: dict[str, float] = {}
    left, open_groups = budget, set(capacity)
    while open_groups:
        total = sum(error[g] for g in open_groups)
        wanted = {
            g: left * (error[g] / total if total > 0 else 1 / len(open_groups)) for g in open_groups
        }
        full = {g for g in open_groups if wanted[g] >= capacity[g]}
        if not full:
            return shares | wanted
        for g in full:
            shares[g] = capacity[g]
        left -= sum(capacity[g] for g in full)
        open_groups -= full
    return shares


def most_sensitive(candidates: Sequence[Candidate], budget: float) -> list[Candidate]:
    """Take candidates by falling damage; one that no longer fits is passed over."""
    taken, left = [], budget * (1 + 1e-9)  # a share of the budget may be a rounding error short
    for candidate in sorted(candidates, key=lambda c: (-c.damage, c.quarter, c.layer)):
        if candidate.cost <= left:
            taken.append(candidate)
            left -= candidate.cost
    return taken


def allocate(candidates: Sequence[Candidate], budget: float) -> list[Candidate]:
    """Choose what is raised: budgets by group, then the order of each group's own metric."""
    groups = sorted({c.group for c in candidates})
    members = {g: [c for c in candidates if c.group == g] for g in groups}
    shares = group_budgets(
        budget,
        {g: sum(c.error for c in members[g]) for g in groups},
        {g: sum(c.cost for c in members[g]) for g in groups},
    )
    return [c for g in groups for c in most_sensitive(members[g], shares[g])]


class Plan(NamedTuple):
    """What the budget bought.

    Attributes:
        widths: Weight bits of every layer in every quarter.
        average: Mean over weights and steps.
    """

    widths: list[list[int]]
    average: float

    def summary(self, layers: Sequence[Layer]) -> str:
        """Share of the (layer, quarter) pairs of each group that were raised."""
        parts = []
        for group in sorted({layer.group for layer in layers}):
            own = [self.widths[i] for i, layer in enumerate(layers) if layer.group == group]
            raised = sum(bits == RAISED for row in own for bits in row)
            parts.append(f"{group} {raised} of {len(own) * QUARTERS} at {RAISED}")
        return ", ".join(parts)


def plan(
    layers: Sequence[Layer], measured: Measured, bits: int, average: float, steps: int
) -> Plan:
    """Spend an average weight width on the most sensitive (layer, quarter) pairs.

    Args:
        layers: The layers.
        measured: Their sensitivities.
        bits: Nominal weight width.
        average: Weight bits wanted, mean over weights and steps; never exceeded.
        steps: Steps of the trajectory.
    """
    spans = [steps_in(quarter, steps) for quarter in range(QUARTERS)]
    total = sum(layer.weights for layer in layers) * steps
    candidates = [
        Candidate(
            layer=i, quarter=quarter, group=layer.group,
            cost=float((RAISED - bits) * layer.weights * spans[quarter]),
            error=measured.error[i][quarter], damage=measured.damage[i][quarter],
        )
        for i, layer in enumerate(layers)
        for quarter in range(QUARTERS)
    ]  # fmt: skip
    widths = [[bits] * QUARTERS for _ in layers]
    spent = 0.0
    for candidate in allocate(candidates, (average - bits) * total):
        widths[candidate.layer][candidate.quarter] = RAISED
        spent += candidate.cost
    return Plan(widths, bits + spent / total)
