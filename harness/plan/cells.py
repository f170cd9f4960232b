"""Cells: the rows of a table with the keys of all that they need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.artifact.stage import artifact_key, pool_key, reference_key, sampler_digest
from harness.generate.generate import clip_key
from harness.generate.text import EMPTY, text_keys
from harness.kernels.request import execution_key
from harness.models.families import family_by_name
from harness.models.tiling import with_tiling
from harness.score.registry import choose_scorers
from harness.spec import FP, Cell, GenSpec, ModelSpec, Prompt, PromptSuite
from harness.store.keys import Keyed, noise_seed
from harness.store.provenance import Device, cohort
from harness.task import CellTask, ClipTask, PoolTask
from harness.vbench.suites import samples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.plan.experiment import Experiment, MethodRow
    from harness.plan.registry import MethodFacts
    from harness.score.scorer import Scorer
    from harness.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCell:
    """One row with what the store holds of it.

    Attributes:
        needs_quantizing: Whether its artifact has to be made.
        missing_clips: Clips that have to be made.
        missing_scores: Scores that its own worker has to make, of those whose clips exist.
        scorers: Who scores its clips; those that cannot, with the reason.
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
    scorers: tuple[Scorer, ...] = ()
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
        judges: Scorers of the suite that are asked of the scoring environment.
        pools: Every pool that a row needs, by id.
        references: By model name: the reference cell and its clip keys by (prompt, seed).
        texts: By model name: keys of every text that a stage may need, by text.
    """

    experiment: Experiment
    store: Store
    device: Device
    suite: PromptSuite
    calibration: PromptSuite | None
    judges: Sequence[Scorer] = ()
    pools: dict[str, PoolTask] = field(default_factory=dict)
    cohorts: dict[str, dict[str, Any]] = field(default_factory=dict)
    gens: dict[str, GenSpec] = field(default_factory=dict)
    references: dict[str, tuple[str, dict[tuple[str, int], str]]] = field(default_factory=dict)
    texts: dict[str, dict[str, Keyed]] = field(default_factory=dict)
    _latents: dict[str, dict[str, Any]] = field(default_factory=dict)  # cohorts before decoding

    def cells(self, model: ModelSpec, row: MethodRow, facts: MethodFacts) -> list[PlannedCell]:
        """The cells of one row: one for each width, one in all for a reference row."""
        family = family_by_name(model.family)
        gen = with_tiling(self.experiment.gen_for(model.gen), family)
        if model.name not in self.gens:
            self._settle(model, gen)
        widths = (FP,) if facts.unquantized else row.bits
        return [self._cell(model, gen, row, facts, bits) for bits in widths]

    def _settle(self, model: ModelSpec, gen: GenSpec) -> None:
        """Fill in what all rows of a model share."""
        self.gens[model.name] = gen
        cleaners = family_by_name(model.family).text_cleaners
        threads = self.experiment.execution.threads
        shared = cohort(self.device, gen, threads, cleaners=cleaners)
        self._latents[model.name] = shared
        tiling = "on" if gen.vae_tiling else "off"
        self.cohorts[model.name] = {**shared, "vae tiling": tiling}
        suites = [self.suite, *([self.calibration] if self.calibration else [])]
        every = dict.fromkeys([EMPTY, *(p.text for suite in suites for p in suite.prompts)])
        self.texts[model.name] = text_keys(every, model, gen, shared)

    def _cell(
        self, model: ModelSpec, gen: GenSpec, row: MethodRow, facts: MethodFacts, bits: str
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
        spread = self.experiment.execution
        execution = execution_key(facts.execution, spread.keyed_kernels)
        clips = self._clips(model, gen, quant.key, execution, reference)
        if row.method.name == FP and not reference:
            keys = {(c.prompt.id, c.seed): c.clip.key for c in clips}
            self.references[model.name] = (cell.id, keys)
        scorers = choose_scorers(
            self.experiment.metrics or (), model, self.suite.prompts, clips=len(clips)
        )
        own = [scorer for scorer in scorers if not scorer.outside]
        task = CellTask(
            id=cell.id,
            model=model,
            gen=gen,
            method=row.method,
            bits=bits,
            pool=pool.pool.key if pool else "",
            artifact=None if facts.unquantized else quant,
            kernels=spread.kernels,
            clips=clips,
            scorers=tuple(scorer.asked_as for scorer in own),
            text=self.texts[model.name][EMPTY].key,
            first=not reference_cell,
        )
        find, artifact = self.store.find, task.artifact
        return PlannedCell(
            cell=cell,
            facts=facts,
            task=task,
            needs_quantizing=artifact is not None and find("artifact", artifact.key) is None,
            missing_clips=sum(find("clip", wanted.clip.key) is None for wanted in clips),
            missing_scores=sum(scorer.open(self.store, task) for scorer in own),
            scorers=(*scorers, *self.judges),
            unsupported="" if facts.unquantized else facts.unsupported.get(bits, ""),
            pool=pool.id if pool else "",
            waits_for=reference_cell,
        )

    def _quant(
        self, model: ModelSpec, gen: GenSpec, row: MethodRow, facts: MethodFacts, bits: str
    ) -> Keyed:
        if facts.unquantized or facts.unsupported.get(bits):
            return reference_key(model, gen, facts.name)
        return artifact_key(
            model=model,
            gen=gen,
            method=facts.name,
            module=facts.module,
            version=facts.version,
            options=facts.spelled,
            libraries=facts.libraries,
            bits=bits,
            calibration=self.calibration if facts.needs_calibration else None,
            seed=row.method.calibration_seed,
        )

    def _pool(self, model: ModelSpec, gen: GenSpec, row: MethodRow) -> PoolTask:
        if self.calibration is None:
            raise ValueError("a method needs calibration but no suite was loaded")
        seed, texts = row.method.calibration_seed, self.texts[model.name]
        name = f"pool--{model.name}--{seed}"
        if name not in self.pools:
            self.pools[name] = PoolTask(
                id=name,
                model=model,
                gen=gen,
                prompts=self.calibration.prompts,
                seed=seed,
                pool=pool_key(
                    model=model,
                    gen=gen,
                    suite=self.calibration,
                    seed=seed,
                    cohort=self._latents[model.name],
                ),
                texts={p.text: texts[p.text].key for p in self.calibration.prompts},
            )
        return self.pools[name]

    def _clips(
        self,
        model: ModelSpec,
        gen: GenSpec,
        quant: str,
        execution: str | Mapping[str, Any],
        reference: Mapping[tuple[str, int], str],
    ) -> tuple[ClipTask, ...]:
        """Each clip of a row, prompt by prompt."""
        common: dict[str, Any] = {
            "quant": quant,
            "execution": execution,
            "gen": gen,
            "cohort": self.cohorts[model.name],
            "sampler": sampler_digest(model.family),
        }
        texts = self.texts[model.name]

        def clip(prompt: Prompt, seed: int) -> ClipTask:
            return ClipTask(
                prompt=prompt,
                seed=seed,
                noise_seed=noise_seed(prompt, seed),
                clip=clip_key(prompt=prompt, seed=seed, **common),
                reference=reference.get((prompt.id, seed), ""),
                text=texts[prompt.text].key,
            )

        return tuple(
            clip(prompt, seed)
            for prompt in self.suite.prompts
            for seed in self.experiment.seeds or range(samples(prompt))
        )
