"""The plan: which cells an experiment has, what the store holds of them, what is left to make.

Planning reads the store; all it changes there is to move damaged entries away.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.measure.measure import CLIPS, ROUNDS, protocol
from harness.models.table import BUNDLED, model_spec
from harness.plan.cells import CellPlanner, PlannedCell
from harness.plan.experiment import Judge
from harness.plan.registry import BrokenMethodError, MethodFacts, describe, find_method
from harness.plan.suites import load_suite, refuse_overlap
from harness.score.vbench_plan import Judging, plan_judging
from harness.store.keys import (
    Keyed,
    digest,
    measure_inputs,
    plain,
)
from harness.store.provenance import Device, cohort, cores, find_device
from harness.task import MeasuredRow, MeasureTask, PoolTask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.plan.experiment import Experiment, Row
    from harness.spec import GenSpec, ModelSpec, PromptSuite
    from harness.store.store import Store

RUN_ID_LENGTH = 12
FULL = "full"  # the calibration budget under which every method has its own defaults


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run has to do.

    Attributes:
        run: Id of the run: the same experiment on the same cohort has the same id.
        pools: Pool tasks by id, those whose pool is missing.
        cohorts: Cohort of each model by name.
        gens: Generation settings of each model by name.
        judging: What is asked of VBench.
        scores: Values that VBench has to be asked for, by dimension.
    """

    run: str
    experiment: Experiment
    device: Device
    models: tuple[ModelSpec, ...]
    suite: PromptSuite
    calibration: PromptSuite | None
    cells: tuple[PlannedCell, ...]
    pools: dict[str, PoolTask] = field(default_factory=dict)
    cohorts: dict[str, dict[str, Any]] = field(default_factory=dict)
    gens: dict[str, GenSpec] = field(default_factory=dict)
    judging: Judging = field(default_factory=Judging)
    scores: Counter[str] = field(default_factory=Counter)

    @property
    def judges(self) -> int:
        """Judges side by side."""
        chosen = self.experiment.judge.shards
        return chosen or self.judging.workers(self.device, self.jobs)

    @property
    def jobs(self) -> int:
        """Workers side by side."""
        execution = self.experiment.execution
        if execution.jobs is not None:
            return execution.jobs
        # Two workers on one accelerator would share its memory and spoil each other's fit.
        return max(1, cores() // execution.threads) if self.device.id == "cpu" else 1

    @property
    def clips(self) -> int:
        """Clips of all rows that can be made."""
        return sum(len(c.task.clips) for c in self.cells if not c.unsupported)

    @property
    def missing_clips(self) -> int:
        """Clips that have to be made."""
        return sum(c.missing_clips for c in self.cells if not c.unsupported)


def make_plan(experiment: Experiment, store: Store) -> Plan:
    """Resolve an experiment against the store.

    Raises:
        UsageError: A name is unknown, or evaluation and calibration prompts overlap.
    """
    device = find_device(experiment.execution.device)
    python = experiment.judge.python
    suite = load_suite(experiment.suite, limit=experiment.limit, python=python)
    models = tuple(model_spec(name) for name in experiment.models)
    if len({model.name for model in models}) != len(models):
        raise UsageError("two models have the same name", "rename one of the folders")
    for row in experiment.rows:
        find_method(row.method.name)  # all names before any method, which may import torch
    rows = [(m, *_described(row, m, experiment, store)) for m in models for row in experiment.rows]
    calibration = None
    if any(facts.needs_calibration for _, _, facts in rows):
        calibration = load_suite(
            experiment.calibration_suite, limit=experiment.calibration_prompts, role="calibration"
        )
        refuse_overlap(load_suite(experiment.suite, python=python), calibration)
    planner = CellPlanner(
        experiment=experiment, store=store, device=device, suite=suite, calibration=calibration
    )
    cells = tuple(c for model, row, facts in rows for c in planner.cells(model, row, facts))
    used = {cell.pool for cell in cells if cell.needs_quantizing and not cell.unsupported}
    pools = {name: task for name, task in planner.pools.items() if name in used}
    judging = plan_judging(experiment, suite, device)
    return Plan(
        run=_run_id(experiment, models, suite, calibration, planner.cohorts),
        experiment=experiment,
        device=device,
        models=models,
        suite=suite,
        calibration=calibration,
        cells=cells,
        pools={k: p for k, p in pools.items() if store.find("pool", p.pool.key) is None},
        cohorts=planner.cohorts,
        gens=planner.gens,
        judging=judging,
        scores=judging.open(store, cells),
    )


def _described(
    row: Row, model: ModelSpec, experiment: Experiment, store: Store
) -> tuple[Row, MethodFacts]:
    """The row with the options that the calibration budget gives it, and what planning must know.

    A method that only a group named may be broken.
    """
    chosen = dict(row.method.options)
    quick = experiment.calibration_budget != FULL and model.name in BUNDLED
    try:
        facts = describe(
            row.method.name, chosen, model.family, row.bits, store.root / "facts", quick=quick
        )
    except BrokenMethodError as cause:
        if row.method.name not in experiment.lenient:
            raise
        facts = MethodFacts(
            name=row.method.name,
            version=0,
            needs_calibration=False,
            unquantized=False,
            options=plain(chosen),
            unsupported=dict.fromkeys(row.bits, cause.message),
        )
    options = tuple(sorted({**facts.quick, **chosen}.items()))
    return replace(row, method=replace(row.method, options=options)), facts


def _run_id(
    experiment: Experiment,
    models: tuple[ModelSpec, ...],
    suite: PromptSuite,
    calibration: PromptSuite | None,
    cohorts: Mapping[str, Any],
) -> str:
    identity = plain(replace(experiment, out=None))
    # How the work is spread does not make another experiment; the threads are in the cohort.
    identity.pop("execution")
    identity.pop("lenient")  # how the rows were named, not which they are
    identity["measure"] = experiment.execution.measure
    # Where the judge is installed and how it is spread neither; what it is asked does, where it is
    # not what the suite asks anyway.
    asked, judge = identity.pop("metrics"), identity.pop("judge")
    if asked is not None:
        identity["metrics"] = asked
    default = plain(Judge())
    how = {n: judge[n] for n in ("scorer", "precision", "batch") if judge[n] != default[n]}
    if how:
        identity["judge"] = how
    identity["revisions"] = [[m.name, m.revision, m.variant] for m in models]
    identity["prompts"] = [suite.digest, calibration.digest if calibration else ""]
    return digest([identity, cohorts])[:RUN_ID_LENGTH]


def measure_task(plan: Plan, model: ModelSpec, finished: set[str]) -> MeasureTask | None:
    """The measuring task of one model over the rows that ended well, None if there are none."""
    cells = [c for c in plan.cells if c.cell.model == model and c.cell.id in finished]
    rows = tuple(
        MeasuredRow(cell=c.cell.id, artifact=c.task.artifact.key if c.task.artifact else "")
        for c in cells
    )
    if not rows:
        return None
    gen = plan.gens[model.name]
    inputs = measure_inputs(
        rows=[f"{row.cell}={row.artifact}" for row in rows],
        gen=gen,
        cohort={**cohort(plan.device, gen, cores()), "model": model.revision + model.variant},
        protocol=protocol(),
    )
    return MeasureTask(
        id=f"measure--{model.name}",
        model=model,
        gen=gen,
        rows=rows,
        measure=Keyed(key=digest(inputs), inputs=inputs),
        rounds=ROUNDS,
        clips=CLIPS,
    )
