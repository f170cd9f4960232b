"""Cells: the rows of a table with the keys of all that they need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.plan.experiment import REFERENCE, Experiment, Row
from harness.score.scorers import SCORERS, find_score, scorers_for
from harness.spec import Cell, GenSpec, ModelSpec, Prompt, PromptSuite
from harness.store.keys import Keyed, clip_inputs, digest, noise_seed, pool_inputs, quant_inputs
from harness.store.provenance import Device, cohort
from harness.task import CellTask, ClipTask, PoolTask
from harness.vbench.suites import samples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.plan.registry import MethodFacts
    from harness.store.store import Store

UNQUANTIZED = "fp"


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


@dataclass(kw_only=True)
class CellPlanner:
    """Turns rows into cells with keys, and asks the store what it holds of them.

    Rows of the reference come first, so that the others know the clips they are paired with.

    Attributes:
        pools: Every pool that a row needs, by id.
        references: By model name: the reference cell and its clip keys by (prompt, seed).
    """

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
            for seed in self.experiment.seeds or range(samples(prompt))
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
            scorers=scorers_for(
                model.judge,
                self.suite.prompts,
                self.experiment.metrics or (),
                clips=len(clips),
            ),
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
            options=facts.spelled,
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
                known = reference is not None or not scorer.paired
                if not known or not find_score(self.store, scorer, wanted.prompt, clip, reference):
                    scores += 1
        return clips, scores
