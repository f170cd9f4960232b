"""The plan: which cells an experiment has, what the store holds of them, what is left to make.

Planning reads the store; all it changes there is to move damaged entries away.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.artifact.stage import METRICS as ARTIFACT_METRICS
from harness.errors import UsageError
from harness.generate.generate import METRICS as CLIP_METRICS
from harness.generate.text import EMPTY
from harness.kernels.registry import OFF
from harness.measure.measure import METRICS as COST_METRICS
from harness.measure.measure import measure_task
from harness.models.offload import NONE
from harness.models.request import check_request
from harness.models.table import BUNDLED, describe_spec, model_spec
from harness.plan.cells import CellPlanner, PlannedCell
from harness.plan.registry import BrokenMethodError, MethodFacts, describe, find_method
from harness.plan.suites import load_suite, refuse_overlap
from harness.score.vbench_plan import JudgeSettings, VBenchPlan, plan_vbench
from harness.spec import SIMULATED
from harness.store.keys import digest, plain
from harness.store.provenance import Device, cohort, cores, find_devices
from harness.task import MeasuredRow, MeasureTask, PoolTask, TextTask

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from harness.plan.experiment import Experiment, MethodRow
    from harness.spec import GenSpec, Metric, ModelSpec, PromptSuite
    from harness.store.keys import Keyed
    from harness.store.store import Store

RUN_ID_LENGTH = 12
FULL = "full"  # the calibration budget under which every method has its own defaults


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run has to do.

    Attributes:
        run: Id of the run: the same experiment on the same cohort has the same id.
        pools: Pool tasks by id, those whose pool is missing.
        texts: Text tasks by id: prompts that have to be encoded for what is missing.
        text_keys: Keys of each model's texts by its name and the text.
        cohorts: Cohort of each model by name.
        gens: Generation settings of each model by name.
        vbench: What is asked of VBench.
        scores: Values that VBench has to be asked for, by dimension.
        devices: Where workers compute, all of one kind; the first is ``device``.
    """

    run: str
    experiment: Experiment
    device: Device
    models: tuple[ModelSpec, ...]
    suite: PromptSuite
    calibration: PromptSuite | None
    cells: tuple[PlannedCell, ...]
    vbench: VBenchPlan
    pools: dict[str, PoolTask] = field(default_factory=dict)
    texts: dict[str, TextTask] = field(default_factory=dict)
    text_keys: dict[str, dict[str, Keyed]] = field(default_factory=dict)
    cohorts: dict[str, dict[str, Any]] = field(default_factory=dict)
    gens: dict[str, GenSpec] = field(default_factory=dict)
    scores: Counter[str] = field(default_factory=Counter)
    devices: tuple[Device, ...] = ()

    @property
    def judges(self) -> int:
        """Judges side by side."""
        chosen = self.experiment.judge.shards
        return chosen or self.vbench.workers(self.device, self.jobs)

    @property
    def jobs(self) -> int:
        """Workers side by side."""
        execution = self.experiment.execution
        if execution.jobs is not None:
            return execution.jobs
        # Two workers on one accelerator would share its memory and spoil each other's fit.
        if self.device.id != "cpu" or len(self.devices) > 1:
            return max(1, len(self.devices))
        return max(1, cores() // execution.threads)

    @property
    def places(self) -> tuple[str, ...]:
        """Device of each worker that runs side by side with the others."""
        ids = [device.id for device in self.devices] or [self.device.id]
        return tuple(ids[i % len(ids)] for i in range(self.jobs))

    @property
    def spreads(self) -> bool:
        """Whether the clips of a row are dealt out over places that have nothing else to do.

        Where neither several devices nor jobs were asked for, a row is one worker.
        """
        return len(self.devices) > 1 or self.experiment.execution.jobs is not None

    @property
    def metrics(self) -> dict[str, Metric]:
        """Facts of every metric that a row can have, by name, in the order of a table's columns."""
        scorers = [scorer for cell in self.cells for scorer in cell.scorers]
        facts = [metric for scorer in scorers for metric in scorer.metrics]
        stages = (*ARTIFACT_METRICS, *CLIP_METRICS, *COST_METRICS)
        return {metric.name: metric for metric in (*facts, *stages)}

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
        UsageError: A name is unknown, a model cannot make what ``[gen]`` asks for, or evaluation
            and calibration prompts overlap.
        HarnessError: A model cannot be run.
    """
    devices = find_devices(experiment.execution.device)
    suite = load_suite(experiment.suite, limit=experiment.limit, python=experiment.judge.python)
    models = _models(experiment)
    for row in experiment.rows:
        find_method(row.method.name)  # all names before any method, which may import torch
    rows = [(m, *_described(row, m, experiment, store)) for m in models for row in experiment.rows]
    needed = any(facts.needs_calibration for _, _, facts in rows)
    calibration = _calibration(experiment) if needed else None
    vbench = plan_vbench(
        suite, devices[0], experiment.judge,
        metrics=experiment.metrics, threads=experiment.execution.threads,
    )  # fmt: skip
    planner = CellPlanner(
        experiment=experiment,
        store=store,
        device=devices[0],
        suite=suite,
        calibration=calibration,
        judges=vbench.scorers(),
    )
    cells = tuple(c for model, row, facts in rows for c in planner.cells(model, row, facts))
    plan = Plan(
        run=_run_id(experiment, models, suite, calibration, planner.cohorts),
        experiment=experiment,
        device=devices[0],
        models=models,
        suite=suite,
        calibration=calibration,
        cells=cells,
        vbench=vbench,
        pools=_missing_pools(planner, cells),
        text_keys=planner.texts,
        cohorts=planner.cohorts,
        gens=planner.gens,
        scores=vbench.open(store, [cell.task for cell in cells if not cell.unsupported]),
        devices=devices,
    )
    return _with_texts(plan, store)


def _missing_pools(planner: CellPlanner, cells: Sequence[PlannedCell]) -> dict[str, PoolTask]:
    """Recordings that a row waits for and the store lacks."""
    used = {cell.pool for cell in cells if cell.needs_quantizing and not cell.unsupported}
    return {
        name: task
        for name, task in planner.pools.items()
        if name in used and planner.store.find("pool", task.pool.key) is None
    }


def _with_texts(plan: Plan, store: Store) -> Plan:
    """The plan with the prompts that have to be encoded for what is missing."""
    tasks = [plan_texts(plan, m, store, _texts_of(plan, m, store)) for m in plan.models]
    return replace(plan, texts={task.id: task for task in tasks if task is not None})


def plan_texts(plan: Plan, model: ModelSpec, store: Store, texts: Iterable[str]) -> TextTask | None:
    """The encoding of those texts that the store lacks; None where it has all."""
    keys = plan.text_keys[model.name]
    missing = {t: keys[t] for t in texts if store.find("text", keys[t].key) is None}
    if not missing:
        return None
    gen = plan.gens[model.name]
    return TextTask(id=f"text--{model.name}", model=model, gen=gen, texts=missing)


def _texts_of(plan: Plan, model: ModelSpec, store: Store) -> list[str]:
    """Texts whose embeddings are needed for what is missing of a model."""
    found: dict[str, None] = {}
    for cell in plan.cells:
        if cell.cell.model != model or cell.done:
            continue
        found |= dict.fromkeys([EMPTY] if cell.needs_quantizing else [])
        clips = cell.task.clips if cell.missing_clips else ()
        found |= dict.fromkeys(
            c.prompt.text for c in clips if store.find("clip", c.clip.key) is None
        )
    for pool in plan.pools.values():
        if pool.model == model:
            found |= dict.fromkeys(prompt.text for prompt in pool.prompts)
    if found and plan.experiment.execution.measure:
        found[EMPTY] = None
    return list(found)


def _models(experiment: Experiment) -> tuple[ModelSpec, ...]:
    """The models, each able to make the clips that are asked for.

    Raises:
        UsageError: One cannot, or two have the same name.
        HarnessError: One cannot be run at all.
    """
    models = tuple(model_spec(name) for name in experiment.models)
    if len({model.name for model in models}) != len(models):
        raise UsageError("two models have the same name", "rename one of the folders")
    for model in models:
        check_request(describe_spec(model), experiment.gen_for(model.gen))
    return models


def _calibration(experiment: Experiment) -> PromptSuite:
    """The calibration prompts.

    Raises:
        UsageError: Some of them are evaluation prompts too, be it behind the limit.
    """
    calibration = load_suite(
        experiment.calibration_suite, limit=experiment.calibration_prompts, role="calibration"
    )
    refuse_overlap(load_suite(experiment.suite, python=experiment.judge.python), calibration)
    return calibration


def _described(
    row: MethodRow, model: ModelSpec, experiment: Experiment, store: Store
) -> tuple[MethodRow, MethodFacts]:
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
    identity["kernels"] = experiment.execution.keyed_kernels
    identity["measure"] = experiment.execution.measure
    if experiment.execution.measure and experiment.execution.offload != NONE:
        identity["offload"] = experiment.execution.offload  # times and peaks depend on it
    # Where the judge is installed and how it is spread neither; what it is asked does, where it is
    # not what the suite asks anyway.
    asked, judge = identity.pop("metrics"), identity.pop("judge")
    if asked is not None:
        identity["metrics"] = asked
    default = plain(JudgeSettings())
    how = {n: judge[n] for n in ("scorer", "precision", "batch") if judge[n] != default[n]}
    if how:
        identity["judge"] = how
    identity["revisions"] = [[m.name, m.revision, m.variant] for m in models]
    identity["prompts"] = [suite.digest, calibration.digest if calibration else ""]
    return digest([identity, cohorts])[:RUN_ID_LENGTH]


def plan_measuring(plan: Plan, model: ModelSpec, finished: set[str]) -> MeasureTask | None:
    """The measuring of one model over the rows that ended well, None if there are none.

    Where kernels are off, simulated rows are left out: they compute in full precision, whatever
    their widths. Where they are not, which rows a kernel runs is known once they are opened.
    """
    kernels = plan.experiment.execution.keyed_kernels
    cells = [
        c
        for c in plan.cells
        if c.cell.model == model
        and c.cell.id in finished
        and (c.facts.execution != SIMULATED or kernels != OFF)
    ]
    rows = [
        MeasuredRow(cell=c.cell.id, artifact=c.task.artifact.key if c.task.artifact else "")
        for c in cells
    ]
    if not rows:
        return None
    gen = plan.gens[model.name]
    text = plan.text_keys[model.name][EMPTY].key
    timed = cohort(plan.device, gen, cores())
    return measure_task(
        model, gen, rows, timed, text, offload=plan.experiment.execution.offload, kernels=kernels
    )
