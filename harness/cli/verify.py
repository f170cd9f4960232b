"""``harness verify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.errors import HarnessError, UsageError

if TYPE_CHECKING:
    from harness.records import Run
    from harness.store import Store

ARTIFACT = "artifact.json"


@click.command()
@click.argument("target")
@click.option("--cell", help="Only this cell of a run folder; the same as RUN:CELL.")
@click.option("--model", help="Model of a single artifact.  [default: as recorded beside it]")
@click.option("--bits", help="Widths of a single artifact.  [default: as recorded beside it]")
@click.option(
    "--format",
    "style",
    type=click.Choice(["terminal", "json", "csv"]),
    default="terminal",
    help="How the layers of a single artifact are printed; how the check went is then on stderr.",
)
def verify(target: str, cell: str | None, model: str | None, bits: str | None, style: str) -> int:
    """Check quantized models: every layer once, at its bits, with no more levels than they allow.

    TARGET is a run folder, of which every quantized row is checked, or one artifact: its folder, or
    RUN:CELL. Of one artifact the layers are printed, and what bits they come to: from the artifact
    alone, without the method that made it.
    """
    folder, cell = artifact_or_run(target, cell)
    if (folder / ARTIFACT).is_file():
        return _one(folder.name[:12], folder, _origin(folder, model, bits), style)
    wanted = _of_run(folder, cell)
    if cell is not None:
        name, artifact, model_name, widths = wanted[0]
        return _one(name, artifact, (model_name, widths), style)
    if style != "terminal":
        raise UsageError("a whole run has no such format", f"choose a row: {target}:CELL")
    codes = [_say(name, _problem(artifact, m, widths)) for name, artifact, m, widths in wanted]
    return max(codes)


def artifact_or_run(target: str, cell: str | None = None) -> tuple[Path, str | None]:
    """Read ``FOLDER`` or ``RUN:CELL``; a cell that is given besides counts where none is named."""
    folder = Path(target)
    before, _, after = target.rpartition(":")
    if not folder.exists() and before and Path(before).is_dir():
        return Path(before), after
    return folder, cell


def artifact_of(target: str) -> Path:
    """The artifact folder that ``FOLDER`` or ``RUN:CELL`` names.

    Raises:
        HarnessError: There is none.
    """
    folder, cell = artifact_or_run(target)
    if (folder / ARTIFACT).is_file():
        return folder
    found = _of_run(folder, cell)
    if cell is None:
        names = ", ".join(name for name, *_ in found)
        raise UsageError(f"'{target}' is a run, not an artifact", f"add a row, RUN:CELL: {names}")
    return found[0][1]


def _one(name: str, artifact: Path, origin: tuple[str, str] | None, style: str) -> int:
    """Check one artifact and print what it holds."""
    from harness.cli import inspection
    from harness.stages.inspect import clip_traces, inspect

    if not (artifact / ARTIFACT).is_file():
        raise HarnessError(f"'{artifact}' is gone from the store", "run the experiment again")
    store = _store_of(artifact)
    switched = "step_policy" in json.loads((artifact / ARTIFACT).read_text(encoding="utf-8"))
    traces = clip_traces(store, artifact.name) if store is not None and switched else []
    found = inspect(artifact, traces)
    problem = None if origin is None else _problem(artifact, *origin)
    if style == "json":
        click.echo(inspection.as_json(found, problem), nl=False)
    elif style == "csv":
        click.echo(inspection.as_csv(found), nl=False)
    else:
        click.echo(inspection.text(found))
    if problem is None:
        unchecked = "its model is not recorded: give --model and --bits to have it checked"
        click.echo(f"not checked  {name}: {unchecked}", err=style != "terminal")
        return 0
    return _say(name, problem, err=style != "terminal")


def _store_of(artifact: Path) -> Store | None:
    """The store that an artifact lies in, None where it lies somewhere else."""
    from harness.store import Store

    place = artifact.absolute()
    inside = (place / "manifest.json").is_file() and place.parent.parent.name == "artifact"
    return Store(place.parents[2]) if inside else None


def _say(name: str, problem: str, *, err: bool = False) -> int:
    """Print how the check of one artifact went; returns the exit code."""
    click.echo(f"FAIL  {name}: {problem}" if problem else f"ok    {name}", err=err)
    return 1 if problem else 0


def _problem(artifact: Path, model: str, bits: str) -> str:
    """What is wrong with an artifact; empty where nothing is."""
    try:
        _check(artifact, model, bits)
    except HarnessError as cause:
        return cause.message
    return ""


def _of_run(folder: Path, cell: str | None) -> list[tuple[str, Path, str, str]]:
    from harness.errors import unknown_name
    from harness.records import load_run

    run: Run = load_run(folder)
    rows = {c.id: c for c in run.cells if c.artifact}
    if cell is not None and cell not in rows:
        raise unknown_name("quantized cell", cell, rows)
    repos = {m["name"]: m for m in run.experiment["models"]}
    chosen = [rows[cell]] if cell is not None else list(rows.values())
    if not chosen:
        raise UsageError(f"run '{folder}' has no quantized rows", "give a run that has some")
    return [
        (
            c.id,
            Path(c.artifact),
            c.model if repos[c.model]["judge"] else repos[c.model]["repo"],
            c.bits,
        )
        for c in chosen
    ]


def _origin(folder: Path, model: str | None, bits: str | None) -> tuple[str, str] | None:
    """Model and widths of an artifact: as given, else from the store's manifest; None if neither.

    Raises:
        UsageError: One of the two is given and the other is not recorded.
    """
    if model and bits:
        return model, bits
    path = folder / "manifest.json"
    if not path.is_file():
        if model or bits:
            raise UsageError(
                f"artifact '{folder}' does not lie in the store, so its model is not recorded",
                "give --model and --bits",
            )
        return None
    from harness.models.table import BUNDLED

    about = json.loads(path.read_text(encoding="utf-8"))["about"]
    name = about["model"]["name"]
    recorded = name if name in BUNDLED else about["model"]["repo"]
    return model or recorded, bits or about["bits"]


def _check(artifact: Path, model: str, bits: str) -> None:
    from harness.bits import BitSpec
    from harness.models.load import load_pipeline
    from harness.models.table import model_spec
    from harness.stages.verify import verify as check

    if not (artifact / ARTIFACT).is_file():
        raise HarnessError(f"'{artifact}' is gone from the store", "run the experiment again")
    spec = model_spec(model)
    pipeline = load_pipeline(spec, device="cpu", dtype=spec.gen.dtype)
    check(pipeline, artifact, family=spec.family, bits=BitSpec.parse(bits), fresh=False)
