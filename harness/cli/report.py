"""``harness report``: the table of a run, again, in any format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from harness.store.records import Run


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "style",
    type=click.Choice(["terminal", "csv", "md", "tex", "page"]),
    help="Print this format only; without it the files in the run folder are written anew as well.",
)
@click.option("--metrics", default="", help="Comma list of metric names; all where left out.")
@click.option(
    "--page",
    type=click.Path(path_type=Path),
    help="Write the results page (Markdown) to this file; text between its reading marks is kept.",
)
def report(run: Path, style: str | None, metrics: str, page: Path | None) -> None:
    """Print the table of RUN: a run folder, or an experiment file.

    Of an experiment file the table shows what the store holds of it now; an unfinished run names
    the rows it lacks.
    """
    from rich.console import Console

    from harness.report import render_run

    chosen = [m.strip() for m in metrics.split(",") if m.strip()]
    if page is not None:
        _write_page(_found(run), page)
    elif style is None and not chosen and run.suffix != ".toml":
        render_run(run, Console())
    else:
        _print_only(_found(run), style or "terminal", chosen)


def _found(place: Path) -> Run:
    """The run in a folder, or the standing of an experiment file."""
    from harness.store.records import load_run

    if place.suffix != ".toml":
        return load_run(place)
    from harness.plan.experiment import Flags, resolve
    from harness.plan.experiment_file import load_file
    from harness.plan.plan import make_plan
    from harness.run.folder import standing
    from harness.run.run import OUT
    from harness.store.store import Store

    store = Store()
    plan = make_plan(resolve(load_file(place), Flags()), store)
    folder = (plan.experiment.out or OUT / plan.run).absolute()
    return standing(plan, store, folder=folder, command=["harness", "run", "--config", str(place)])


def _write_page(run: Run, path: Path) -> None:
    """Write the page, keeping what was written by hand into the one before."""
    from harness.report.page import page
    from harness.store.durable import replace_file

    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, page(run, before=before))
    click.echo(str(path))


def _print_only(run: Run, style: str, metrics: list[str]) -> None:
    """Print one format to standard output and write no file."""
    from rich.console import Console

    from harness.report.build import build_table
    from harness.report.csv import comma_separated
    from harness.report.latex import latex
    from harness.report.markdown import markdown
    from harness.report.page import page
    from harness.report.terminal import print_table

    if style == "page":
        click.echo(page(run, before=""), nl=False)
        return
    table = build_table(run, metrics=metrics)
    if style == "terminal":
        print_table(table, Console())
        return
    write = {"csv": comma_separated, "md": markdown, "tex": latex}[style]
    click.echo(write(table), nl=False)
