"""``harness fetch vbench-weights``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.errors import HarnessError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.vbench.supply import Supply
    from harness.vbench.weights import WeightFile, Weights

_SETS = ("vbench-8", "vbench")


@click.command(name="vbench-weights")
@click.option("--dimension", "dimensions", multiple=True, help="Only what this dimension needs.")
@click.option(
    "--metrics",
    type=click.Choice(_SETS),
    help="Only what these dimensions need: the eight that quantization papers print, or all 16.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="Take the files from this folder, by path or by name, and download nothing.",
)
@click.option(
    "--folder",
    "place",
    type=click.Path(path_type=Path),
    help="Where the files shall lie; remembered. One that exists already, such as ~/.cache/vbench, "
    "is taken as it is.",
)
@click.option("--dry-run", is_flag=True, help="Print the table of files and fetch nothing.")
def vbench_weights(
    dimensions: tuple[str, ...],
    metrics: str | None,
    source: Path | None,
    place: Path | None,
    dry_run: bool,
) -> None:
    """Fetch the weights that VBench's dimensions need.

    A download that was interrupted goes on where it stopped, and a file that is there is not
    fetched again. Digests that the publishers state are checked; the others are locked when a file
    is first used. Without --dimension or --metrics: the weights of all 16 dimensions.
    """
    from harness.vbench import weights

    rows = [weights.table()[name] for name in weights.ids_of(_chosen(dimensions, metrics))]
    folder = weights.folder() if place is None else place.expanduser().absolute()
    if dry_run:
        _print_table(rows, folder)
        return
    if weights.is_stand_in(folder):
        raise HarnessError(
            f"{folder} declares its weights as stand-ins ({weights.STAND_IN})",
            "choose another folder for the official ones: --folder FOLDER",
        )
    if place is not None:
        weights.register(folder)
    code = _fetch(rows, folder, source)
    if code:
        sys.exit(code)


def _chosen(dimensions: tuple[str, ...], metrics: str | None) -> tuple[str, ...]:
    """Dimensions that were asked for; all of them where nothing was."""
    from harness.vbench.dimensions import DIMENSIONS, EIGHT

    if dimensions and metrics:
        raise UsageError("--dimension and --metrics both choose dimensions", "give one of them")
    if metrics == "vbench-8":
        return EIGHT
    return dimensions or tuple(DIMENSIONS)


def _fetch(rows: Sequence[Weights], folder: Path, source: Path | None) -> int:
    """Bring every file; returns the exit code, 0 when all are here and right."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.progress import TransferSpeedColumn as Speed

    supply = _supply(rows, folder, source)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
    shown = console.is_terminal
    bars = Progress(
        *columns, DownloadColumn(), Speed(), Remaining(),
        console=console, transient=True, disable=not shown,
    )  # fmt: skip
    code, failed, files = 0, 0, [(row, file) for row in rows for file in row.files]
    with bars:
        for row, file in files:
            try:
                _bring(supply, row, file, bars if shown else None)
            except HarnessError as cause:
                failed += 1
                code = max(code, cause.exit_code)
                click.echo(str(cause), err=True)
    click.echo(f"{len(files) - failed} of {len(files)} files are in {folder}")
    return code


def _bring(supply: Supply, row: Weights, file: WeightFile, bars: object) -> None:
    """Bring one file, with a bar while it is downloaded and a line when something was done."""
    from rich.progress import Progress

    from harness.vbench.supply import HERE

    name = f"{file.id}: {file.path}"
    if isinstance(bars, Progress):
        bar = bars.add_task(name, total=None)
        try:
            done = supply.bring(
                row, file, lambda here, total: bars.update(bar, completed=here, total=total or None)
            )
        finally:
            bars.remove_task(bar)
    else:
        done = supply.bring(row, file)
    if done != HERE:
        click.echo(f"{name}: {done}")


def _supply(rows: Iterable[Weights], folder: Path, source: Path | None) -> Supply:
    """Where the files may come from."""
    from harness.vbench import environment
    from harness.vbench.supply import Offer, Supply

    installed = None
    if any(file.ships and file.here(folder) is None for row in rows for file in row.files):
        try:
            found = environment.find()
            installed = found.full_info.parent.parent if found is not None else None
        except HarnessError as cause:  # it is one source of a small file; the web is another
            click.echo(f"warning: {cause.message}", err=True)
    offer = None if source is None else Offer(source.expanduser())
    return Supply(folder=folder, offer=offer, site_packages=installed)


def _print_table(rows: Sequence[Weights], folder: Path) -> None:
    """Id, file, size, licence, what is known of its digest, whether it is here, and for what."""
    from harness.vbench import weights

    needed = _needed_by()
    heads = ["id", "file", "size", "licence", "digest", "state", "for"]
    lines = [heads]
    for row in rows:
        origin = weights.origins([row.id], folder)[row.id]
        size = row.size or "unknown"
        for file in row.files:
            state = _state(file, folder)
            facts = [row.id, file.path, size, row.licence or "not read", origin, state]
            lines.append([*facts, ", ".join(needed[row.id])])
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        cells = (f"{text:<{n}}" for text, n in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
    click.echo(f"folder: {folder}")
    click.echo('"about" is the size of a random file in the same format, not of the official one')


def _needed_by() -> dict[str, list[str]]:
    """Dimensions by the id of the weights they need."""
    from harness.vbench.dimensions import DIMENSIONS, EXTRA_WEIGHTS

    found: dict[str, list[str]] = {}
    for name, ids in ({n: d.weights for n, d in DIMENSIONS.items()} | EXTRA_WEIGHTS).items():
        for row in ids:
            found.setdefault(row, []).append(name)
    return found


def _state(file: WeightFile, folder: Path) -> str:
    """Whether a file is here and known to be the right one; reads no file."""
    from harness.vbench import ledger, parts, weights

    path = file.here(folder)
    if path is None:
        begun = parts.part_bytes(folder / file.path)
        return f"{begun / 1e6:.0f} MB of it here" if begun else "missing"
    found = ledger.remembered(path)
    if not found:
        return "here, not checked"
    if not weights.is_stand_in(folder):
        try:
            weights.refuse_other(file, found, path)
        except HarnessError:
            return "here, but another file"
    return "here"
