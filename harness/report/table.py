"""The one table: built from a run's records, drawn by every renderer.

A `Table` holds numbers with their intervals, not strings, so that the terminal, CSV, Markdown and
LaTeX cannot disagree. It cannot be built without provenance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.report.columns import Column
    from harness.report.provenance import Provenance

BEST, SECOND, DIFFERS = "best", "second", "differs"
ABSENT = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class TableEntry:
    """One place in the table.

    Attributes:
        text: Printed instead of a number: ``simulated``, a status, ``reference``; also a composed
            value.
        value: As recorded, None where there is none.
        low: Lower end of the 95 % interval.
        high: Upper end.
        n: Prompts it rests on, 0 for a value of the whole row.
        spread: Interquartile range of a latency.
        p_holm: Holm-adjusted p of a difference to fp.
        mark: ``best``, ``second``, ``differs`` or empty.
        notes: Letters of the footnotes.
    """

    text: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    spread: float | None = None
    p_holm: float | None = None
    mark: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One row of a block; ``entries`` stand in the order of the block's columns."""

    cell: str
    model: str
    method: str
    label: str
    bits: str
    status: str
    execution: str
    unquantized: bool
    entries: tuple[TableEntry, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A group of columns for one model."""

    model: str
    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    def visible(self) -> tuple[tuple[int, Column], ...]:
        """Columns that are printed, with their place in ``entries``."""
        return tuple((i, c) for i, c in enumerate(self.columns) if c.shown)

    def groups(self) -> list[list[Line]]:
        """Lines in stretches of equal bits, for rules and multirow cells."""
        found: list[list[Line]] = []
        for line in self.lines:
            if found and found[-1][-1].bits == line.bits:
                found[-1].append(line)
            else:
                found.append([line])
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """All that a renderer needs.

    Attributes:
        blocks: Quality, fidelity, cost, other; for each model.
        notes: (letter, text) of the footnotes that entries refer to.
        remarks: Footnotes that hold for the whole table.
        provenance: What the numbers come from; always printed.
    """

    blocks: tuple[Block, ...]
    notes: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]
    provenance: Provenance


@dataclass(frozen=True, kw_only=True, slots=True)
class EntryText:
    """An entry as text in pieces, so that each renderer can set them off its own way."""

    main: str
    spread: str = ""
    interval: str = ""
    mark: str = ""
    notes: tuple[str, ...] = ()


def parts(column: Column, entry: TableEntry) -> EntryText:
    """Write an entry the way its column shows it."""
    if entry.value is None or entry.text:
        return EntryText(main=entry.text or ABSENT, mark=entry.mark, notes=entry.notes)
    main = column.number(entry.value) + column.fact.suffix
    spread = "" if entry.spread is None else f"±{column.number(entry.spread)}"
    interval = ""
    if column.interval and entry.low is not None and entry.high is not None:
        ends = (column.number(end, end=True) for end in (entry.low, entry.high))
        interval = f"[{', '.join(ends)}]"
    return EntryText(
        main=main, spread=spread, interval=interval, mark=entry.mark, notes=entry.notes
    )
