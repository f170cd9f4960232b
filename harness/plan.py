"""The plan: which cells an experiment has, what the store holds of them, what is left to make.

Planning reads the store and changes nothing in it but moving damaged entries away.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.config import REFERENCE, Experiment, Row
from harness.errors import UsageError
from harness.keys import (
    clip_inputs,
    digest,
    measure_inputs,
    noise_seed,
    plain,
    pool_inputs,
    quant_inputs,
)
from harness.models.table import model_spec
from harness.provenance import Device, cohort, cores, find_device
from harness.registry import MethodFacts, describe
from harness.spec import Cell, GenSpec, ModelSpec, Prompt, PromptSuite
from harness.stages.measure import CLIPS, ROUNDS, protocol
from harness.stages.score import SCORERS, find_score, scorers_for
from harness.suites import load_suite, refuse_overlap
from harness.task import CellTask, ClipTask, Keyed, MeasuredRow, MeasureTask, PoolTask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.store import Store

UNQUANTIZED = "fp"
RUN_ID_LENGTH = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCell:
    """One row with what the store holds of it.

    Attributes:
        needs_quantizing: Whether its artifact has to be made.
        missing_clips: Clips that have to be made.
        missing_scores: Scores that have to be made, of those whose clips exist.
        unsupported: Why the row cannot be made; empty where it can.
        pool: Id of the pool task it waits for; empty without.
        waits_for: Id of the cell that makes its reference clips; empty for the reference.
    """

    cell: Cell
    facts: MethodFacts
    task: CellTask
    needs_quantizing: bool
    missing_clips: int
    missing_scores: int
    unsupported: str = ""
    pool: str = ""
    waits_for: str = ""

    @property
    def done(self) -> bool:
        """Whether nothing is left to make."""
        return bool(self.unsupported) or not (
            self.needs_quantizing or self.missing_clips or self.missing_scores
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run has to do.

    Attributes:
        run: Id of the run: the same experiment on the same cohort has the same id.
        pools: Pool tasks by id, those whose pool is missing.
        cohorts: Cohort of each model by name.
        gens: Generation settings of each model by name.
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
    suite = load_suite(experiment.suite, limit=experiment.limit)
    models = tuple(model_spec(name) for name in experiment.models)
    if len({model.name for model in models}) != len(models):
        raise UsageError("two models have the same name", "rename one of the folders")
    rows = [(m, row, _facts(row, m, store)) for m in models for row in experiment.rows]
    calibration = None
    if any(facts.needs_calibration for _, _, facts in rows):
        calibration = load_suite(
            experiment.calibration_suite, limit=experiment.calibration_prompts, role="calibration"
        )
        refuse_overlap(load_suite(experiment.suite), calibration)
    planner = _Planner(
        experiment=experiment, store=store, device=device, suite=suite, calibration=calibration
    )
    cells = tuple(c for model, row, facts in rows for c in planner.cells(model, row, facts))
    used = {cell.pool for cell in cells if cell.needs_quantizing and not cell.unsupported}
    pools = {name: task for name, task in planner.pools.items() if name in used}
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
    )


def _facts(row: Row, model: ModelSpec, store: Store) -> MethodFacts:
    chosen = dict(row.method.options)
    cache = store.root / "facts"
    return describe(row.method.name, chosen, model.family, row.bits, cache)


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
    identity["measure"] = experiment.execution.measure
    identity["revisions"] = [[m.name, m.revision, m.variant] for m in models]
    identity["prompts"] = [suite.digest, calibration.digest if calibration else ""]
    return digest([identity, cohorts])[:RUN_ID_LENGTH]


@dataclass(kw_only=True)
class _Planner:
    experiment: Experiment
    store: Store
    device: Device
    suite: PromptSuite
    calibration: PromptSuite | None
    pools: dict[str, PoolTask] = field(default_factory=dict)
    cohorts: dict[str, dict[str, Any]] = field(default_factory=dict)
    gens: dict[str, GenSpec] = field(default_factory=dict)
    references: dict[str, tuple[str, dict[tuple[str, int], str]]] = field(default_factory=dict)

    def cells(self, model: ModelSpec, row: Row, facts: MethodFacts) -> list[PlannedCell]:
        """The cells of one row: one for each width, one in all for a reference row."""
        gen = self.experiment.gen_for(model.gen)
        self.gens[model.name] = gen
        self.cohorts[model.name] = cohort(self.device, gen, self.experiment.execution.threads)
        widths = (UNQUANTIZED,) if facts.unquantized else row.bits
        return [self._cell(model, gen, row, facts, bits) for bits in widths]

    def _cell(
        self, model: ModelSpec, gen: GenSpec, row: Row, facts: MethodFacts, bits: str
    ) -> PlannedCell:
        cell = Cell(
            model=model,
            method=row.method,
            bits=bits,
            suite=self.suite.name,
            gen=gen,
            seeds=self.experiment.seeds,
        )
        quant = self._quant(model, gen, row, facts, bits)
        pool = self._pool(model, gen, row) if facts.needs_calibration else None
        reference_cell, reference = self.references.get(model.name, ("", {}))
        clips = tuple(
            self._clip(model, gen, quant, prompt, seed, reference)
            for prompt in self.suite.prompts
            for seed in self.experiment.seeds
        )
        if row.method.name == REFERENCE and not reference:
            keys = {(c.prompt.id, c.seed): c.clip.key for c in clips}
            self.references[model.name] = (cell.id, keys)
        task = CellTask(
            id=cell.id,
            model=model,
            gen=gen,
            method=row.method,
            bits=bits,
            pool=pool.pool.key if pool else "",
            artifact=None if facts.unquantized else quant,
            clips=clips,
            scorers=scorers_for(model.judge),
        )
        missing_clips, missing_scores = self._missing(task)
        artifact = task.artifact
        return PlannedCell(
            cell=cell,
            facts=facts,
            task=task,
            needs_quantizing=artifact is not None
            and self.store.find("artifact", artifact.key) is None,
            missing_clips=missing_clips,
            missing_scores=missing_scores,
            unsupported="" if facts.unquantized else facts.unsupported.get(bits, ""),
            pool=pool.id if pool else "",
            waits_for=reference_cell,
        )

    def _quant(
        self, model: ModelSpec, gen: GenSpec, row: Row, facts: MethodFacts, bits: str
    ) -> Keyed:
        calibration = None
        if facts.needs_calibration and self.calibration is not None:
            calibration = {
                "suite": self.calibration.digest,
                "prompts": len(self.calibration.prompts),
            }
        inputs = quant_inputs(
            model=model,
            gen=gen,
            method=facts.name,
            version=facts.version,
            options=facts.options,
            bits=bits,
            calibration=calibration,
            seed=0 if facts.unquantized else row.method.calibration_seed,
        )
        return Keyed(key=digest(inputs), inputs=inputs)

    def _pool(self, model: ModelSpec, gen: GenSpec, row: Row) -> PoolTask:
        if self.calibration is None:
            raise ValueError("a method needs calibration but no suite was loaded")
        seed = row.method.calibration_seed
        name = f"pool--{model.name}--{seed}"
        if name not in self.pools:
            inputs = pool_inputs(
                model=model,
                gen=gen,
                suite_digest=self.calibration.digest,
                seed=seed,
                cohort=self.cohorts[model.name],
            )
            self.pools[name] = PoolTask(
                id=name,
                model=model,
                gen=gen,
                prompts=self.calibration.prompts,
                seed=seed,
                pool=Keyed(key=digest(inputs), inputs=inputs),
            )
        return self.pools[name]

    def _clip(
        self,
        model: ModelSpec,
        gen: GenSpec,
        quant: Keyed,
        prompt: Prompt,
        seed: int,
        reference: Mapping[tuple[str, int], str],
    ) -> ClipTask:
        cohort = self.cohorts[model.name]
        inputs = clip_inputs(quant_key=quant.key, gen=gen, prompt=prompt, seed=seed, cohort=cohort)
        return ClipTask(
            prompt=prompt,
            seed=seed,
            noise_seed=noise_seed(prompt, seed),
            clip=Keyed(key=digest(inputs), inputs=inputs),
            reference=reference.get((prompt.id, seed), ""),
        )

    def _missing(self, task: CellTask) -> tuple[int, int]:
        clips = scores = 0
        for wanted in task.clips:
            clip = self.store.find("clip", wanted.clip.key)
            if clip is None:
                clips += 1
                continue
            reference = self.store.find("clip", wanted.reference) if wanted.reference else None
            for scorer in (SCORERS[name] for name in task.scorers):
                if scorer.paired and not wanted.reference:
                    continue  # the reference itself
                if scorer.paired and reference is None:
                    scores += 1
                elif find_score(self.store, scorer, wanted.prompt, clip, reference) is None:
                    scores += 1
        return clips, scores


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
