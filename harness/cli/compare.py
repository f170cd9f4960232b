"""``harness compare``: paired differences of every row against one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from harness.report.compare import Difference


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path), required=False)
@click.option(
    "--reference", required=True, help="Label of the row that all others are held against."
)
@click.option("--metric", "metrics", multiple=True, help="Metric name; may be given several times.")
@click.option("--bits", default="", help="Only this width, e.g. w4a6.")
def compare(
    run: Path, other: Path | None, reference: str, metrics: tuple[str, ...], bits: str
) -> None:
    """Print row minus reference over the prompts of RUN, or of OTHER's rows against RUN's.

    Two runs must share the prompt suite and the cohort.
    """
    from rich.console import Console

    from harness.report.compare import compare as differences
    from harness.report.provenance import Provenance
    from harness.report.terminal import print_whole
    from harness.store.records import load_run

    first = load_run(run)
    second = None if other is None else load_run(other)
    found = differences(first, reference=reference, metrics=metrics, bits=bits, other=second)
    console = Console()
    for model in dict.fromkeys(d.model for d in found):
        print_whole(_grid(model, [d for d in found if d.model == model]), console)
        console.print()
    wrap = not console.is_terminal
    console.print(
        "[low, high]: 95 % bootstrap interval over prompts, seeds averaged first; p: sign flips; "
        "better, worse and differs only where the interval excludes zero and Holm's p is below "
        "0.05; differs where no direction is better",
        markup=False,
        style="dim",
        highlight=False,
        soft_wrap=wrap,
    )
    for line in Provenance.of(first).lines():
        console.print(line, markup=False, style="dim", highlight=False, soft_wrap=wrap)


def _grid(model: str, found: list[Difference]) -> Table:
    """Differences of one model; a section for each metric and reference row."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, title=Text(model), title_justify="left")
    grid.add_column("metric and row", no_wrap=True)
    for head in ("difference", "95 % interval", "n", "p", "p Holm", "verdict"):
        grid.add_column(head, justify="right", no_wrap=True)
    group = ""
    for d in found:
        arrow = {"higher": " ↑", "lower": " ↓"}.get(d.better, "")
        title = f"{d.metric}{arrow}, row - {d.reference} {d.reference_bits}"
        if title != group:
            grid.add_section()
            grid.add_row(Text(title, style="bold"))
            group = title
        mean = d.test.difference
        interval = "none of one prompt"
        if mean.low is not None and mean.high is not None:
            interval = f"[{mean.low:+.4g}, {mean.high:+.4g}]"
        grid.add_row(
            Text(f"  {d.row} {d.bits}"),
            f"{mean.mean:+.4g}",
            Text(interval),
            str(mean.n),
            f"{d.test.p:.4f}",
            f"{d.test.p_holm:.4f}",
            Text(d.verdict, style="bold" if d.verdict != "tie" else "dim"),
        )
    return grid
