"""The results page: a run of many rows as one Markdown document, with room for a reading.

Everything on it but the text between the reading marks is written anew each time, from the records
alone, so the page of an unfinished run is right about what is there and names what is not.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.report.build import build_table, table_remarks
from harness.report.columns import known_metrics
from harness.report.markdown import entry_text, escape, row_text
from harness.report.notes import row_notes
from harness.report.provenance import Provenance
from harness.report.resolution import resolution
from harness.report.table import parts
from harness.report.values import Values
from harness.spec import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.report.columns import Column
    from harness.report.table import Table, TableEntry
    from harness.store.records import CellOutcome, Run

BEGIN, END = "<!-- reading -->", "<!-- /reading -->"
UNREAD = "_Nobody has written a reading of these numbers yet: it goes here and stays._"
_STATUS_TITLES = {
    Status.SKIPPED: "Missing",
    Status.UNSUPPORTED: "Unsupported",
    Status.DIVERGED: "Diverged",
}


def page(run: Run, *, before: str) -> str:
    """Write the page.

    Args:
        run: The run, finished or not.
        before: Text of the page as it is on the disk, empty where there is none.

    Raises:
        UsageError: ``before`` is not a page with one reading, so writing would lose it.
        HarnessError: The run lacks provenance.
    """
    values = Values.of(run)
    known = values.metrics()
    chosen = [name for name, fact in known_metrics(run).items() if fact.headline and name in known]
    table = build_table(run, metrics=chosen) if chosen else None
    notes: dict[str, int] = {}
    chunks = [f"# Results: {', '.join(_models(run))}", _header(run)]
    chunks += [f"{BEGIN}\n{reading(before)}\n{END}", *resolution(run, values)]
    for model in _models(run):
        chunks.append(f"## {escape(model)}")
        for bits in _widths(run, model):
            chunks += _width(run, values, table, model, bits, notes)
    if notes:
        lines = [f"{number}. {escape(note)}" for note, number in notes.items()]
        chunks.append("\n".join(["## Notes", "", *lines]))
    if table is not None:
        lines = [f"- {escape(text)}" for text in table_remarks(run, table.blocks)]
        chunks.append("\n".join(["## How to read it", "", *lines]))
    return "\n\n".join(chunks) + "\n"


def reading(before: str) -> str:
    """The text between the reading marks of a page, or the place holder for a new page.

    Raises:
        UsageError: There is text, but not exactly one pair of marks.
    """
    if not before.strip():
        return UNREAD
    if (
        before.count(BEGIN) != 1
        or before.count(END) != 1
        or before.index(END) < before.index(BEGIN)
    ):
        raise UsageError(
            "the page on the disk has no reading marks, so it is not overwritten",
            f"put {BEGIN} and {END} around what shall stay, or give another path",
        )
    return before.partition(BEGIN)[2].partition(END)[0].strip("\n")


def _header(run: Run) -> str:
    """Command, machine, n, and how far the run is."""
    provenance = Provenance.of(run)
    machine: dict[str, Any] = run.provenance.get("machine", {})
    hardware = [f"{machine.get('cpu', 'unknown processor')}, {machine.get('cores', '?')} cores"]
    hardware += machine.get("gpus", [])
    command = shlex.join(str(part) for part in run.provenance.get("command", ()))
    by_status: dict[str, int] = {}
    for cell in run.cells:
        by_status[str(cell.status)] = by_status.get(str(cell.status), 0) + 1
    missing = by_status.pop(str(Status.SKIPPED), 0)
    rows = ", ".join(f"{count} {status}" for status, count in by_status.items())
    commit = str(run.provenance.get("commit", ""))
    facts = {
        "command": f"`{command}`" if command else "not recorded",
        "run": f"{run.id}, vdit-quant-harness {provenance.version}, {provenance.at}"
        + (f", commit {commit[:12]}{'+' * commit.endswith('+')}" if commit else ""),
        "machine": escape("; ".join(hardware)),
        "cohort": escape(provenance.cohort),
        "prompts": escape("; ".join(provenance.suites)),
        "n": f"{provenance.prompts} prompts, {provenance.seeds} seed"
        + "s" * (provenance.seeds != 1),
        "rows": f"{len(run.cells)}: {rows}"
        + (f", **{missing} not made yet**: the command above goes on with them" if missing else ""),
    }
    lines = [row_text(["what", ""]), row_text([":--", ":--"])]
    return "\n".join([*lines, *(row_text([name, text]) for name, text in facts.items())])


def _models(run: Run) -> list[str]:
    return list(dict.fromkeys(cell.model for cell in run.cells))


def _widths(run: Run, model: str) -> list[str]:
    cells = [c for c in run.cells if c.model == model and not c.unquantized]
    return list(dict.fromkeys(c.bits for c in cells))


def _width(
    run: Run, values: Values, table: Table | None, model: str, bits: str, notes: dict[str, int]
) -> list[str]:
    """One width of one model: the table of what is there, then what is not."""
    cells = [c for c in run.cells if c.model == model and (c.bits == bits or c.unquantized)]
    cells.sort(key=lambda c: not c.unquantized)
    whole = [c for c in cells if c.status is Status.OK]
    chunks = [f"### {escape(model)}, {bits}"]
    columns, entries = _entries(table, model)
    footnotes = dict(table.notes) if table is not None else {}
    if columns and any(not c.unquantized for c in whole):
        heads = ["method", *(c.head.replace("\n", " ") for c in columns), "notes"]
        rows = [row_text([escape(h) for h in heads])]
        rows.append(row_text([":--", *("--:" for _ in columns), ":--"]))
        for cell in whole:
            texts = [_text(c, entries[cell.id].get(c.key)) for c in columns]
            letters = [n for e in entries[cell.id].values() for n in e.notes]
            said = [*row_notes(cell, values), *(footnotes[n] for n in dict.fromkeys(letters))]
            refs = [str(notes.setdefault(note, len(notes) + 1)) for note in said]
            rows.append(row_text([escape(cell.label), *texts, ", ".join(refs)]))
        chunks.append("\n".join(rows))
    else:
        chunks.append("No row of this width is finished.")
    lost = _lost([c for c in cells if c.status is not Status.OK])
    return [*chunks, lost] if lost else chunks


def _entries(
    table: Table | None, model: str
) -> tuple[list[Column], dict[str, dict[str, TableEntry]]]:
    """Columns of all blocks of a model side by side, and entries by row and column."""
    columns: list[Column] = []
    entries: dict[str, dict[str, TableEntry]] = {}
    for block in table.blocks if table is not None else ():
        if block.model != model:
            continue
        columns += [c for _, c in block.visible()]
        for line in block.lines:
            row = entries.setdefault(line.cell, {})
            row |= {c.key: line.entries[i] for i, c in block.visible()}
    return columns, entries


def _text(column: Column, entry: TableEntry | None) -> str:
    """An entry without its footnotes, which stand in the last column."""
    return "-" if entry is None else entry_text(replace(parts(column, entry), notes=()))


def _lost(cells: Sequence[CellOutcome]) -> str:
    """Rows that have no numbers, by reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        title = _STATUS_TITLES.get(cell.status, f"Failed ({cell.status})")
        groups.setdefault((title, cell.detail or "no reason kept"), []).append(cell.label)
    return "\n".join(
        f"- {title}: {', '.join(escape(label) for label in labels)}: {escape(reason)}"
        for (title, reason), labels in groups.items()
    )
