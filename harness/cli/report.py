"""``harness report``: the table of a run, again, in any format."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "style",
    type=click.Choice(["terminal", "csv", "md", "tex"]),
    help="Print this format only; without it the files in the run folder are written anew as well.",
)
@click.option("--metrics", default="", help="Comma list of metric names; all where left out.")
def report(run: Path, style: str | None, metrics: str) -> None:
    """Print the table of the run folder RUN."""
    from rich.console import Console

    from harness.report import render_run

    chosen = [m.strip() for m in metrics.split(",") if m.strip()]
    if style is None and not chosen:
        render_run(run, Console())
        return
    _print_only(run, style or "terminal", chosen)


def _print_only(folder: Path, style: str, metrics: list[str]) -> None:
    """Print one format to standard output and write no file."""
    from rich.console import Console

    from harness.records import load_run
    from harness.report.build import build_table
    from harness.report.csv import comma_separated
    from harness.report.latex import latex
    from harness.report.markdown import markdown
    from harness.report.terminal import print_table

    table = build_table(load_run(folder), metrics=metrics)
    if style == "terminal":
        print_table(table, Console())
        return
    write = {"csv": comma_separated, "md": markdown, "tex": latex}[style]
    click.echo(write(table), nl=False)
