"""Memory and time of each stage of a model, as sections of its sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.models.families import family_by_name
from harness.models.offload import BLOCKS, OFFLOADS
from harness.models.shape import SHAPED
from harness.models.tiling import with_tiling
from harness.plan import fit
from harness.plan.experiment import DEFAULT_BITS
from harness.plan.history import history
from harness.plan.memory import KINDS, peaks
from harness.plan.model_sheet import Section
from harness.plan.registry import BrokenMethodError, describe, methods
from harness.plan.stage_time import UNKNOWN, Calibration, stage_rows

if TYPE_CHECKING:
    from pathlib import Path

    from harness.plan.fit import Budget
    from harness.plan.memory import Sizes
    from harness.plan.plan import Plan
    from harness.spec import GenSpec, ModelSpec
    from harness.store.store import Store

_W_BITS = 4
"""Weights of the simulated rows that are shown where no experiment names them."""


def model_costs(spec: ModelSpec, store: Store) -> list[Section]:
    """Memory and time of a model at its own settings, whatever the device.

    Args:
        spec: The model.
        store: Has the journal and remembered facts.
    """
    cache = store.root / "facts"
    gen = with_tiling(spec.gen, family_by_name(spec.family))
    sizes, why = _sizes(spec, gen, cache)
    memory = _unknown(why) if sizes is None else _columns(sizes)
    found = _every_method(spec, cache)
    rows = stage_rows(spec.name, sizes, history(store), found)
    return [memory, Section(title="time", rows=tuple(rows))]


def plan_costs(plan: Plan, model: ModelSpec, store: Store) -> list[Section]:
    """Memory and time of a model as a plan runs it, on its device.

    Args:
        plan: The plan.
        model: One of its models.
        store: Has the journal and remembered facts.
    """
    cache = store.root / "facts"
    sizes, why = _sizes(model, plan.gens[model.name], cache)
    memory = _unknown(why)
    if sizes is not None:
        budget = fit.budget_of(plan, model, sizes)
        memory = _planned(budget, plan)
    calibrations = [
        Calibration(label=cell.cell.method.label, bits=cell.cell.bits, facts=cell.facts)
        for cell in plan.cells
        if cell.cell.model == model and cell.needs_quantizing and not cell.unsupported
    ]
    rows = stage_rows(model.name, sizes, history(store), calibrations)
    return [memory, Section(title="time", rows=tuple(rows))]


def _sizes(spec: ModelSpec, gen: GenSpec, cache: Path) -> tuple[Sizes | None, str]:
    """Sizes of a model, or why there are none."""
    if spec.family not in SHAPED:
        return None, f"no estimate for this family ({spec.family})"
    try:
        found = fit.sizes_at(spec, gen, cache)
    except HarnessError as cause:  # where the hub does not answer, the rest is printed
        return None, cause.message
    return found, "" if found else "no estimate from the configs of this model"


def _unknown(why: str) -> Section:
    return Section(title="memory", rows=(("every stage", UNKNOWN, why),))


def _columns(sizes: Sizes) -> Section:
    """The peaks under each setting of offload, side by side."""
    columns = [peaks(sizes, offload=o, kinds=KINDS, w_bits=_W_BITS) for o in OFFLOADS]
    rows = [("[execution] offload", "".join(f"{name:>12}" for name in OFFLOADS), "")]
    for stages in zip(*columns, strict=True):
        held = "".join(f"{fit.size_text(peak.device):>12}" for peak in stages)
        host = f"with {BLOCKS}, {fit.size_text(stages[-1].host)} of the host's"
        rows.append((stages[0].stage, held, host))
    return Section(
        title=f"memory at the peak of a stage (estimate; simulated rows at {_W_BITS} bits)",
        rows=tuple(rows),
    )


def _planned(budget: Budget, plan: Plan) -> Section:
    """The peaks as the plan places them."""
    several = budget.setting.workers
    rows = []
    for peak in budget.peaks():
        host = "" if budget.on_cpu else f"host {fit.size_text(peak.host)}"
        over = "above what the device has" if peak.device > budget.device else ""
        rows.append((peak.stage, fit.size_text(peak.device), ", ".join(filter(None, (host, over)))))
    offload = "" if budget.on_cpu else f", offload {budget.setting.offload}"
    workers = f", {several} workers" if several > 1 else ""
    has = f"{plan.device.id} has {fit.size_text(budget.device)}"
    return Section(
        title=f"memory at the peak of a stage (estimate{offload}{workers}; {has})", rows=tuple(rows)
    )


def _every_method(spec: ModelSpec, cache: Path) -> list[Calibration]:
    """Every method that calibrates and runs on the model, at its default options and width."""
    found = []
    for name in methods():
        try:
            facts = describe(name, {}, spec.family, DEFAULT_BITS, cache, quick=False)
        except BrokenMethodError:
            continue  # `harness list methods` says what is broken
        if facts.needs_calibration:
            found += [
                Calibration(label=name, bits=bits, facts=facts)
                for bits in DEFAULT_BITS
                if bits not in facts.unsupported
            ]
    return found
