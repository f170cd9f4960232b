"""The table in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.measure import Measurement
from rich.table import Table as Grid
from rich.text import Text

from harness.report.columns import DELTA, Column
from harness.report.table import ABSENT, BEST, DIFFERS, SECOND, Block, EntryText, Line, Table, parts

if TYPE_CHECKING:
    from rich.console import Console

Columns = tuple[tuple[int, Column], ...]
SHORT = {"simulated": "sim.", "reference": "ref."}  # where the terminal is narrow
_STYLES = {BEST: "bold", SECOND: "underline"}


def print_table(table: Table, console: Console) -> None:
    """Print all blocks, the footnotes and the provenance.

    A terminal too narrow for intervals and spreads gets the table without them (they are in the
    CSV), and one too narrow even for that gets a block in several pieces; output that is not a
    terminal is as wide as the table needs.
    """
    model = ""
    for block in table.blocks:
        if block.model != model:
            model = block.model
            console.print(Text(model, style="bold"))
        for grid in _fitting(block, console):
            print_whole(grid, console)
            console.print()
    for line in footer(table):
        console.print(Text(line, style="dim"), soft_wrap=not console.is_terminal)


def _fitting(block: Block, console: Console) -> list[Grid]:
    """The block in the fullest form that the terminal has room for."""
    columns = block.visible()
    whole = _grid(block, columns, compact=False)
    if not console.is_terminal or _width(whole, console) <= console.width:
        return [whole]
    pieces = [columns[:1]]
    for column in columns[1:]:
        wider = (*pieces[-1], column)
        if _width(_grid(block, wider, compact=True), console) <= console.width:
            pieces[-1] = wider
        else:
            pieces.append((column,))
    return [_grid(block, piece, compact=True) for piece in pieces]


def print_whole(grid: Grid, console: Console) -> None:
    """Print a grid; to what is not a terminal at the grid's own width, since a file has no edge."""
    before = console.width
    if not console.is_terminal:
        console.width = max(before, _width(grid, console))
    try:
        console.print(grid)
    finally:
        console.width = before


def _width(grid: Grid, console: Console) -> int:
    """Characters a grid needs."""
    options = console.options.update(width=1_000, max_width=1_000)
    return Measurement.get(console, options, grid).maximum


def footer(table: Table) -> list[str]:
    """Footnotes, remarks and provenance as plain lines."""
    notes = [f"{letter}) {text}" for letter, text in table.notes]
    return [*notes, *table.remarks, *table.provenance.lines()]


def _grid(block: Block, columns: Columns, *, compact: bool) -> Grid:
    """One block as a rich table, a rule between widths."""
    grid = Grid(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        title=block.title,
        title_justify="left",
        title_style="italic",
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    grid.add_column("method", no_wrap=True)
    grid.add_column("bits", no_wrap=True)
    for _, column in columns:
        arrow = "" if column.kind == DELTA else column.head.removeprefix(column.title)
        grid.add_column(column.title + arrow, justify="right", no_wrap=True)
    for group in block.groups():
        for line in group:
            grid.add_row(*_cells(columns, line, compact), end_section=line is group[-1])
    return grid


def _cells(columns: Columns, line: Line, compact: bool) -> list[Text]:
    """Texts of a row; the label is never read as markup."""
    bits = ABSENT if line.unquantized else line.bits
    found = [Text(line.label), Text(bits)]
    for i, column in columns:
        found.append(_text(parts(column, line.entries[i]), compact))
    return found


def _text(part: EntryText, compact: bool) -> Text:
    main = SHORT.get(part.main, part.main) if compact else part.main
    text = Text.assemble((main, _STYLES.get(part.mark, "")))
    if part.mark == DIFFERS:
        text.append("*")
    for extra in (part.spread, part.interval):
        if extra and not compact:
            text.append(f" {extra}", style="dim")
    for letter in part.notes:
        text.append(f" {letter})", style="dim")
    return text
