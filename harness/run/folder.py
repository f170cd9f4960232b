"""The standing of a run: what its folder says, at the end of it or while rows are missing."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from harness.generate.generate import MP4_FILE
from harness.run.collect import Collector, Ending, outcome
from harness.spec import Record, Status
from harness.store.keys import plain
from harness.store.provenance import provenance
from harness.store.records import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.plan.cells import PlannedCell
    from harness.plan.plan import Plan
    from harness.spec import PromptSuite
    from harness.store.store import Store

NOT_MADE = "not made yet"
UNFINISHED = "the run is not finished: rows are missing, the same command goes on with them"


def standing_of(cell: PlannedCell) -> Ending:
    """How a cell stands that no worker has ended: found whole, unsupported, or not made yet."""
    if cell.unsupported:
        return Ending(status=Status.UNSUPPORTED, detail=cell.unsupported)
    if cell.done:
        return Ending(status=Status.OK)
    clips = len(cell.task.clips)
    if cell.needs_quantizing:
        return Ending(status=Status.SKIPPED, detail=f"{NOT_MADE}: not quantized")
    made = f"has {clips - cell.missing_clips} of {clips} clips"
    return Ending(status=Status.SKIPPED, detail=f"{NOT_MADE}: {made}")


def standing(plan: Plan, store: Store, *, folder: Path, command: list[str]) -> Run:
    """The run as the store has it, whoever made what is there; makes and writes nothing.

    Rows that are not whole are ``skipped`` and say how far they are.
    """
    endings = {c.cell.id: standing_of(c) for c in plan.cells}
    whole = [c for c in plan.cells if endings[c.cell.id].status is Status.OK]
    collector = Collector(plan=plan, store=store)
    missing = any(ending.status is Status.SKIPPED for ending in endings.values())
    return describe_run(
        plan,
        store,
        folder=folder,
        endings=endings,
        records=[record for cell in whole for record in collector.records(cell)],
        warnings=[UNFINISHED] if missing else [],
        command=command,
    )


def describe_run(
    plan: Plan,
    store: Store,
    *,
    folder: Path,
    endings: Mapping[str, Ending],
    records: Sequence[Record],
    failures: Sequence[str] = (),
    warnings: Sequence[str] = (),
    remarks: Sequence[str] = (),
    judges: Sequence[Mapping[str, Any]] = (),
    command: list[str],
) -> Run:
    """Put together what the run folder holds.

    Args:
        plan: The plan of the run.
        store: Where artifacts lie.
        folder: Run folder.
        endings: How each cell ended, by id.
        records: All values.
        failures: What went wrong beside the rows.
        warnings: What a reader of the table must know.
        remarks: What helps to read it.
        judges: What each of VBench's workers counted: files decoded, models loaded.
        command: Command line that asked for it.
    """
    told = {
        "failures": list(failures),
        "warnings": list(warnings),
        "remarks": [*plan.vbench.remarks, *remarks],
        "judges": [plain(counts) for counts in judges],
    }
    used = {record.metric for record in records}
    return Run(
        id=plan.run,
        folder=folder,
        experiment=_described(plan),
        suites=_suites(plan),
        cohort=next(iter(plan.cohorts.values())),
        provenance={**provenance(command), **told},
        cells=tuple(outcome(c, endings[c.cell.id], store) for c in plan.cells),
        records=tuple(records),
        metrics=tuple(fact for name, fact in plan.metrics.items() if name in used),
    )


def _described(plan: Plan) -> dict[str, Any]:
    described: dict[str, Any] = plain(plan.experiment)
    described["models"] = [plain(model) for model in plan.models]
    described["gen"] = {name: plain(gen) for name, gen in plan.gens.items()}
    described["cohorts"] = plan.cohorts
    described["rows"] = [
        {
            "label": c.cell.method.label,
            "method": c.facts.name,
            "version": c.facts.version,
            "options": c.facts.options,
            "bits": c.cell.bits,
            "model": c.cell.model.name,
            "calibration_seed": c.cell.method.calibration_seed,
        }
        for c in plan.cells
    ]
    return described


def _suites(plan: Plan) -> dict[str, Any]:
    def facts(suite: PromptSuite) -> dict[str, Any]:
        return {
            "version": suite.version,
            "digest": suite.digest,
            "role": suite.role,
            "prompts": len(suite.prompts),
            "texts": {prompt.id: prompt.text for prompt in suite.prompts},
        }

    suites = [plan.suite, *([plan.calibration] if plan.calibration else [])]
    return {suite.name: facts(suite) for suite in suites}


def copy_out(plan: Plan, store: Store, folder: Path) -> None:
    """Put clips and figures into the run folder, as hard links where the disk allows it."""
    for planned in plan.cells:
        for wanted in planned.task.clips:
            clip = store.find("clip", wanted.clip.key)
            if clip is not None:
                name = f"{wanted.prompt.id}-s{wanted.seed}.mp4"
                _link(clip.folder / MP4_FILE, folder / "clips" / planned.cell.id / name)
        artifact = planned.task.artifact
        entry = store.find("artifact", artifact.key) if artifact else None
        if entry is not None and (entry.folder / "figures").is_dir():
            kept = entry.folder / "figures"  # of several networks each has a folder of its own
            for figure in sorted(path for path in kept.rglob("*") if path.is_file()):
                _link(figure, folder / "figures" / planned.cell.id / figure.relative_to(kept))


def _link(source: Path, target: Path) -> None:
    if target.exists():
        if target.samefile(source) or target.read_bytes() == source.read_bytes():
            return
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
