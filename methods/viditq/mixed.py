"""Metric-decoupled mixed precision of ViDiT-Q (arXiv 2406.02540): which layer keeps 8 bits when.

In five steps:
1. The sampling trajectory is cut into four quarters.
2. Layers fall into groups by what they influence: text (cross-attention), quality (self-attention
   and feed-forward), motion (temporal attention).
3. Each layer is quantized alone, in each quarter; the error of the denoiser's output gives every
   group a share of the bit budget.
4. Within a group, layers are ranked by the metric that the group influences.
5. The most sensitive are raised to 8 bits until the group's budget is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import torch

from harness.api import HarnessError
from harness.errors import UsageError, unknown_name
from harness.models.block_input import Sample
from harness.models.families.base import linear_at
from harness.quant.layers.layers import replace_module_

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from harness.method import QuantContext
    from harness.models.families.base import Family, InputGroup

    Metric = Callable[[Tensor, Tensor], float]

QUARTERS = 4  # ViDiT-Q, metric-decoupled mixed precision: the trajectory in four equal parts
RAISED = 8  # ViDiT-Q W4A8-MP: sensitive layers take 8-bit weights


def output_error(reference: Tensor, quantized: Tensor) -> float:
    """Relative squared error of the conditional branch; proxy of DOVER's video quality.

    Args:
        reference: Full-precision denoiser output ``[branches, frames, features]``, the conditional
            branch last.
        quantized: The same with one layer quantized.
    """
    return _relative(reference[-1], quantized[-1])


def guidance_error(reference: Tensor, quantized: Tensor) -> float:
    """Relative squared error of conditional minus unconditional output; proxy of CLIPScore.

    That difference is all that the text changes.

    Raises:
        HarnessError: The model has one guidance branch only.
    """
    if reference.shape[0] < 2:
        raise HarnessError(
            "the metric 'guidance' needs a conditional and an unconditional branch",
            "choose text_metric = 'output' for a model without classifier-free guidance",
        )
    return _relative(reference[-1] - reference[0], quantized[-1] - quantized[0])


def motion_error(reference: Tensor, quantized: Tensor) -> float:
    """Relative squared error of the differences between frames; proxy of the flow score."""
    return _relative(reference[-1].diff(dim=0), quantized[-1].diff(dim=0))


METRICS: dict[str, Metric] = {
    "output": output_error,
    "guidance": guidance_error,
    "motion": motion_error,
}
"""Proxies by name; each is larger for more damage."""


def metric_named(option: str, name: str) -> Metric:
    """Look a metric up: one of ``METRICS``, or ``package.module:function`` of one's own.

    A metric gets the full-precision and the quantized output of the denoiser, each
    ``[branches, frames, features]``, and returns the damage.

    Raises:
        UsageError: There is no such metric.
    """
    if name in METRICS:
        return METRICS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise unknown_name(f"option '{option}': value", name, METRICS)
    try:
        found: Metric = getattr(import_module(module), function)
    except (ImportError, AttributeError) as cause:
        raise UsageError(
            f"option '{option}': metric '{name}' cannot be imported",
            "give module:function, the module being on the Python path",
        ) from cause
    return found


def is_feed_forward(group: InputGroup) -> bool:
    """Whether the feed-forward alone reads an input.

    An input that an attention shares (HunyuanVideo's single blocks) is the attention's: it takes
    one scale and one rotation for both.
    """
    return group.role in ("feed_forward_in", "feed_forward_out")


def is_cross_attention(group: InputGroup) -> bool:
    """Whether an input belongs to the attention from the video to the text."""
    return group.role.startswith("cross_attention")


def layer_group(family: Family, group: InputGroup) -> str:
    """Name what a linear influences: ``text``, ``quality`` or ``motion``.

    Where text and video attend to each other jointly, that attention is where the text enters, and
    counts as ``text``.
    """
    if is_feed_forward(group):
        return "quality"
    if group.temporal:
        return "motion"
    joint = len(family.attention_order) > 1
    return "text" if joint or is_cross_attention(group) else "quality"


class Layer(NamedTuple):
    """What is quantized alone: the attention of one kind, or the feed-forward, of one block.

    Attributes:
        name: Block and kind, ``transformer_blocks.0 ff``.
        group: ``text``, ``quality`` or ``motion``.
        linears: Qualified names.
        weights: Number of weights in them.
    """

    name: str
    group: str
    linears: tuple[str, ...]
    weights: int


def layers_of(family: Family, transformer: nn.Module) -> list[Layer]:
    """Every attention and feed-forward of the denoiser; modulation linears belong to none."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, block in family.blocks(transformer):
        for group in family.groups(block):
            if group.modulation:
                continue
            kind = "ff" if is_feed_forward(group) else "attn"
            if is_cross_attention(group):
                kind = "cross"
            key = (name, kind, layer_group(family, group))
            found.setdefault(key, []).extend(f"{name}.{linear}" for linear in group.linears)
    return [
        Layer(
            f"{name} {kind}",
            group,
            tuple(linears),
            sum(linear_at(transformer, linear).weight.numel() for linear in linears),
        )
        for (name, kind, group), linears in found.items()
    ]


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


def steps_in(quarter: int, steps: int) -> int:
    """Number of steps in a quarter of the trajectory."""
    return sum(quarter_of(step, steps) == quarter for step in range(steps))


def quarter_of(step: int, steps: int) -> int:
    """Quarter of the trajectory that a step lies in."""
    return step * QUARTERS // steps


def quarter_bounds(timesteps: Sequence[float]) -> tuple[float, ...]:
    """Timesteps between the quarters, half way between the two steps that a bound divides.

    Raises:
        HarnessError: There are fewer steps than quarters.
    """
    steps = len(timesteps)
    if steps < QUARTERS:
        raise HarnessError(
            f"metric-decoupled mixed precision cuts the trajectory in {QUARTERS} parts, "
            f"it has {steps} steps",
            f"sample with {QUARTERS} steps or more, or set mixed = 'none'",
        )
    firsts = [-(-quarter * steps // QUARTERS) for quarter in range(1, QUARTERS)]
    return tuple((timesteps[first - 1] + timesteps[first]) / 2 for first in firsts)


def probe_samples(prompts: int, steps: int, count: int) -> list[list[Sample]]:
    """For each quarter ``count`` samples: steps spread over the quarter, prompts in turn."""
    chosen = []
    for quarter in range(QUARTERS):
        own = [step for step in range(steps) if quarter_of(step, steps) == quarter]
        picks = [own[(2 * i + 1) * len(own) // (2 * count)] for i in range(count)]
        chosen.append([Sample(i % prompts, step) for i, step in enumerate(picks)])
    return chosen


class Measured(NamedTuple):
    """Error and damage of every (layer, quarter), and the denoiser evaluations that it took."""

    error: list[list[float]]
    damage: list[list[float]]
    evaluations: int


@torch.no_grad()
def measure_sensitivity(
    transformer: nn.Module,
    ctx: QuantContext,
    layers: Sequence[Layer],
    metrics: Mapping[str, Metric],
    samples: Sequence[Sequence[Sample]],
    quantized: Callable[[str], nn.Module],
) -> Measured:
    """Quantize one layer at a time and compare the denoiser's output with full precision.

    Args:
        transformer: Full precision; it is given back as it was.
        ctx: Context of the run.
        layers: What is quantized alone.
        metrics: Metric by layer group.
        samples: Samples of each quarter.
        quantized: The quantized form of a linear, by qualified name.
    """
    flat = [(q, sample) for q, own in enumerate(samples) for sample in own]
    exact = [_output(transformer, ctx, sample) for _, sample in flat]
    error = [[0.0] * QUARTERS for _ in layers]
    damage = [[0.0] * QUARTERS for _ in layers]
    for i, layer in enumerate(layers):
        ctx.progress(i / len(layers), f"sensitivity of {layer.name}")
        originals = {name: linear_at(transformer, name) for name in layer.linears}
        for name in originals:
            replace_module_(transformer, name, quantized(name))
        for (quarter, sample), reference in zip(flat, exact, strict=True):
            out = _output(transformer, ctx, sample)
            share = 1 / len(samples[quarter])
            error[i][quarter] += share * output_error(reference, out)
            damage[i][quarter] += share * metrics[layer.group](reference, out)
        for name, linear in originals.items():
            replace_module_(transformer, name, linear)
    return Measured(error, damage, (len(layers) + 1) * len(flat))


def _output(transformer: nn.Module, ctx: QuantContext, sample: Sample) -> Tensor:
    """Denoiser output ``[branches, frames, features]`` at a recorded sample, float32."""
    arguments = ctx.calibration.call(sample, ctx.device).arguments
    out: Tensor = transformer(**arguments)[0]
    return ctx.family.frames(transformer, out.float(), arguments)


def _relative(reference: Tensor, other: Tensor) -> float:
    """||other - reference||^2 / ||reference||^2."""
    scale = reference.square().sum().clamp_min(torch.finfo(reference.dtype).tiny)
    return float((other - reference).square().sum() / scale)
