"""The table as CSV: one line a row, full precision, intervals in columns of their own."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from harness.report.columns import CELL, DELTA, EXECUTION, LAYERS, Column

if TYPE_CHECKING:
    from harness.report.table import Table, TableEntry

_HEAD = ("model", "method", "label", "bits", "status", "execution")


def comma_separated(table: Table) -> str:
    """Write all blocks side by side.

    An empty place is a value that does not exist, among them latencies of simulated rows (column
    ``execution`` says which). The provenance stands in the last columns of every line.
    """
    rows: dict[str, dict[str, str]] = {}
    notes = dict(table.notes)
    for block in table.blocks:
        for line in block.lines:
            row = rows.setdefault(line.cell, {name: getattr(line, name) for name in _HEAD})
            for column, entry in zip(block.columns, line.entries, strict=True):
                row |= _fields(column, entry)
                if entry.notes:
                    told = [row["notes"]] if row.get("notes") else []
                    row["notes"] = "; ".join(
                        dict.fromkeys([*told, *(notes[n] for n in entry.notes)])
                    )
    provenance = table.provenance
    tail = {
        "prompts": str(provenance.prompts),
        "seeds": str(provenance.seeds),
        "suites": "; ".join(provenance.suites),
        "cohort": provenance.cohort,
        "version": provenance.version,
        "run": provenance.run,
    }
    body = dict.fromkeys(name for row in rows.values() for name in row)
    names = [*(n for n in body if n != "notes"), "notes", *tail]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **tail} for row in rows.values())
    return out.getvalue()


def _fields(column: Column, entry: TableEntry) -> dict[str, str]:
    """A value and what belongs to it, under the column's key."""
    key = column.key
    found = {key: _full(entry.value)}
    if column.fact.spread:
        found[column.fact.spread] = _full(entry.spread)
    if column.kind in (CELL, EXECUTION, LAYERS):
        return found
    found |= {
        f"{key}_ci_low": _full(entry.low),
        f"{key}_ci_high": _full(entry.high),
        f"{key}_n": str(entry.n or ""),
    }
    if column.kind == DELTA:
        found[f"{key}_p_holm"] = _full(entry.p_holm)
    else:
        found[f"{key}_mark"] = entry.mark
    return found


def _full(value: float | None) -> str:
    """Shortest text that reads back as the same number."""
    return "" if value is None else repr(float(value))
