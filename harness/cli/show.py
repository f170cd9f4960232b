"""``harness show``: what is behind a method, a model, a run or an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.group()
def show() -> None:
    """Print what is behind a method, a model, a run or an artifact."""


@show.command()
@click.argument("name")
def method(name: str) -> None:
    """Print source, options and every known deviation of the method NAME."""
    import dataclasses

    from harness.plan.registry import load_method

    found = load_method(name)
    origin = found.reproduction
    _facts(
        {
            "method": f"{found.name}, version {found.version}",
            "paper": origin.title,
            "source": origin.source,
            "code": origin.code,
            "calibration": "needed" if found.needs_calibration else "none (data-free)",
        }
    )
    click.echo("\noptions")
    for option in dataclasses.fields(found.Options):
        click.echo(f"  {option.name} = {getattr(found.Options(), option.name)!r}")
    if origin.rows:
        click.echo("\npublished rows to hold it against")
        for row in origin.rows:
            click.echo(_wrap(row))
    click.echo(f"\ndifferences to the paper: {len(origin.deviations) or 'none known'}")
    for deviation in origin.deviations:
        click.echo(_wrap(f"[{deviation.kind}] {deviation.what}"))
        click.echo(_wrap(f"why: {deviation.why}", indent=4))


@show.command()
@click.argument("name")
def model(name: str) -> None:
    """Print settings, sources, size, memory and time of NAME: a name, a folder or a hub id."""
    from harness.models.table import model_spec
    from harness.plan.cost_sheet import model_costs
    from harness.plan.model_sheet import lines, model_sheet
    from harness.plan.size_sheet import size_section
    from harness.store.store import Store

    spec = model_spec(name)
    known = [*model_sheet(spec, spec.gen), size_section(spec)]
    click.echo("\n".join(lines([*known, *model_costs(spec, Store())])))


@show.command()
@click.argument("folder", type=click.Path(path_type=Path))
def run(folder: Path) -> None:
    """Print plan, rows and provenance of the run in FOLDER."""
    from harness.report.inspection import calibration_time
    from harness.store.records import load_run

    found = load_run(folder)
    _facts({"run": found.id, "folder": str(found.folder), "records": str(len(found.records))})
    click.echo("\nrows")
    width = max((len(c.id) for c in found.cells), default=0)
    for cell in found.cells:
        tail = ": ".join(t for t in (cell.execution, cell.detail) if t)
        click.echo(f"  {cell.id:<{width}}  {cell.status:<11}  {tail}".rstrip())
        for note in (cell.report or {}).get("notes", ()):
            click.echo(_wrap(note, indent=width + 4))
        if parts := (cell.report or {}).get("parts"):
            click.echo(_wrap(calibration_time(parts), indent=width + 4))
    suites = {name: _without(facts, "texts") for name, facts in found.suites.items()}
    for title, facts in (
        ("experiment", found.experiment),
        ("suites", suites),
        ("cohort", found.cohort),
        ("provenance", found.provenance),
    ):
        click.echo(f"\n{title}")
        click.echo(_indent(_compact(facts)))


@show.command()
@click.argument("folder", type=click.Path(path_type=Path))
def artifact(folder: Path) -> None:
    """Print manifest and layers of the artifact in FOLDER."""
    from harness.artifact.inspect import inspect
    from harness.quant.layers.artifact import read_manifest
    from harness.report import inspection

    about = _without(read_manifest(folder), "layers", "kept_dtypes", "shared", "model_config")
    _facts({k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()})
    click.echo("")
    click.echo(inspection.text(inspect(folder)))


def _facts(facts: dict[str, str]) -> None:
    """Print ``name: value`` lines."""
    for name, value in facts.items():
        click.echo(f"{name}: {value}")


def _without(facts: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in facts.items() if k not in names}


def _compact(facts: dict[str, Any]) -> str:
    """One line for each entry, nested values as JSON."""
    return "\n".join(
        f"{k}: {v if isinstance(v, str) else json.dumps(v, sort_keys=True)}"
        for k, v in facts.items()
    )


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _wrap(text: str, indent: int = 2) -> str:
    """Fold a sentence to the terminal's width, hanging by the indent."""
    import shutil
    import textwrap

    width = max(60, min(120, shutil.get_terminal_size().columns))
    return textwrap.fill(
        text, width, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2)
    )
