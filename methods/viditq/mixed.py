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

import dataclasses
from typing import TYPE_CHECKING

from harness.quant import SwitchedLinear, TimestepPolicy, attach_policy_
from methods.viditq.allocation import RAISED, Plan, plan
from methods.viditq.metrics import METRICS, metric_named
from methods.viditq.quarters import QUARTERS, quarter_bounds, steps_in
from methods.viditq.sensitivity import (
    Layer,
    Measured,
    layers_of,
    measure_sensitivity,
    probe_samples,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from harness.api import QuantContext, QuantReport


def mixed_precision_(
    transformer: nn.Module,
    ctx: QuantContext,
    quantized: Callable[[str], nn.Module],
    replace_: Callable[[dict[str, list[int]]], None],
    report: Callable[[], QuantReport],
) -> QuantReport:
    """Measure every layer's sensitivity, allocate the budget, replace, in place.

    Args:
        transformer: Full precision, balanced.
        ctx: Context of the run.
        quantized: The quantized form of a linear at the nominal width, by qualified name.
        replace_: Replaces every linear, given weight bits by quarter of those that are mixed.
        report: Report of what ``replace_`` left.

    Returns:
        The report with the true average bits, what was raised and what it cost.
    """
    options, timesteps = ctx.options, ctx.timesteps()
    bounds = quarter_bounds(timesteps)
    layers = layers_of(ctx.family, transformer)
    samples = probe_samples(
        len(ctx.calibration.prompts), len(timesteps), options.sensitivity_samples
    )
    metrics = {
        group: metric_named(getattr(options, f"{group}_metric"))
        for group in ("text", "quality", "motion")
    }
    measured = measure_sensitivity(transformer, ctx, layers, metrics, samples, quantized)
    bought = plan(layers, measured, ctx.bits.w, options.average_bits, len(timesteps))
    replace_({name: bought.widths[i] for i, layer in enumerate(layers) for name in layer.linears})
    if any(isinstance(module, SwitchedLinear) for module in transformer.modules()):
        attach_policy_(transformer, TimestepPolicy(bounds))
    return _with_plan(report(), ctx, layers, measured, bought)


def _with_plan(
    report: QuantReport,
    ctx: QuantContext,
    layers: Sequence[Layer],
    measured: Measured,
    bought: Plan,
) -> QuantReport:
    """True average bits, what was raised, what it cost."""
    pool = ctx.calibration
    steps = [steps_in(quarter, pool.steps) for quarter in range(QUARTERS)]
    mean = {
        name: sum(b * n for b, n in zip(bought.widths[i], steps, strict=True)) / pool.steps
        for i, layer in enumerate(layers)
        for name in layer.linears
    }
    return dataclasses.replace(
        report,
        layers=tuple(
            dataclasses.replace(entry, w_bits=mean.get(entry.name, entry.w_bits))
            for entry in report.layers
        ),
        calibration_forwards=report.calibration_forwards + measured.evaluations * pool.branches,
        notes=(*report.notes, *_notes(ctx, layers, measured, bought)),
        curves=report.curves
        | {
            f"{what}_quarter_{quarter + 1}": [row[quarter] for row in rows]
            for what, rows in (("output_error", measured.error), ("damage", measured.damage))
            for quarter in range(QUARTERS)
        },
        mixed=f"metric-decoupled mixed precision: weights {ctx.bits.w} or {RAISED} bits by layer "
        f"and quarter of the trajectory, {bought.average:.2f} on average",
    )


def _notes(
    ctx: QuantContext, layers: Sequence[Layer], measured: Measured, bought: Plan
) -> tuple[str, ...]:
    options, branches = ctx.options, ctx.calibration.branches
    used = sorted({layer.group for layer in layers})
    ranked = ", ".join(f"{g} by {getattr(options, f'{g}_metric')}" for g in used)
    return (
        f"weights average {bought.average:.2f} bits over token linears and steps (budget "
        f"{options.average_bits:g}): {bought.summary(layers)}",
        f"layers ranked on calibration samples: {ranked}; {', '.join(METRICS)} are "
        "proxies on the denoiser's output for the paper's DOVER, CLIPScore and flow score",
        f"the sensitivity took {measured.evaluations} denoiser evaluations of "
        f"{branches} branches: {len(layers)} layers x {QUARTERS} quarters x "
        f"{options.sensitivity_samples} samples, and full precision",
    )
