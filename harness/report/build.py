"""From a run's records to the table: which rows, which columns, which footnotes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.errors import unknown_name
from harness.report import columns as col
from harness.report.entries import REFERENCE_DETAIL, Entries
from harness.report.marks import mark_differences, mark_ranks
from harness.report.notes import grouped_notes
from harness.report.provenance import Provenance
from harness.report.table import ABSENT, Block, Line, Table, TableEntry
from harness.report.values import SIMULATED, Values
from harness.report.vbench import remarks as vbench_remarks
from harness.report.vbench import revealed
from harness.spec import BLOCKS, FP, VBENCH, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.report.columns import Column
    from harness.store.records import CellOutcome, Run


def build_table(run: Run, *, metrics: Sequence[str] = ()) -> Table:
    """Build the table of a run.

    Args:
        run: The run, as read from its folder.
        metrics: Metric names to show; all where empty.

    Raises:
        UsageError: A metric is not among the run's.
        HarnessError: The run lacks provenance.
    """
    values = Values.of(run)
    known = values.metrics()
    columns = col.columns_of(col.known_metrics(run), values)
    for metric in metrics:
        if metric not in known:
            raise unknown_name("metric", metric, known)
    provenance = Provenance.of(run)
    notes = Notes()
    blocks = [
        block
        for model in dict.fromkeys(cell.model for cell in run.cells)
        for block in _model_blocks(run, model, values, columns, metrics, notes)
    ]
    return Table(
        blocks=tuple(blocks),
        notes=tuple(notes.lettered()),
        remarks=tuple(_remarks(run, values, blocks)),
        provenance=provenance,
    )


class Notes:
    """Footnotes in order of first use; the same text has one letter."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def letter(self, text: str) -> str:
        """Letter of a footnote, new or old."""
        n = len(self._letters)
        return self._letters.setdefault(text, chr(ord("a") + n) if n < 26 else f"n{n}")

    def lettered(self) -> list[tuple[str, str]]:
        """(letter, text), in order."""
        return [(letter, text) for text, letter in self._letters.items()]


def _model_blocks(
    run: Run,
    model: str,
    values: Values,
    columns: Sequence[Column],
    metrics: Sequence[str],
    notes: Notes,
) -> list[Block]:
    """The blocks of one model that have anything in them."""
    cells = _ordered([c for c in run.cells if c.model == model])
    entries = Entries(
        values=values,
        cells=cells,
        reference=next((c.id for c in cells if c.method == FP), ""),
    )
    blocks = []
    asked = {*metrics, *([col.SPEEDUP] if col.STEP in metrics else [])}
    for title in BLOCKS:
        chosen = [c for c in columns if c.block == title and (not asked or c.metric in asked)]
        grid = {c.key: entries.column(c) for c in chosen}
        kept = [c for c in chosen if any(_filled(e) for e in grid[c.key].values())]
        kept = revealed(kept, grid)
        if not any(c.shown for c in kept):
            continue
        for column in kept:
            mark_ranks(column, grid[column.key], cells, values)
            mark_differences(column, grid[column.key], cells, values, entries.reference)
        blocks.append(
            Block(
                model=model,
                title=title,
                columns=tuple(kept),
                lines=tuple(_line(cell, kept, grid, notes, entries) for cell in cells),
            )
        )
    return blocks


def _ordered(cells: list[CellOutcome]) -> list[CellOutcome]:
    """Reference rows first, then by bits in order of first appearance; otherwise as planned."""
    widths = list(dict.fromkeys(c.bits for c in cells))
    return sorted(cells, key=lambda c: (not c.unquantized, widths.index(c.bits)))


def _filled(entry: TableEntry) -> bool:
    """Whether a column is worth printing for this entry."""
    return entry.value is not None or entry.text == SIMULATED


def _line(
    cell: CellOutcome,
    kept: Sequence[Column],
    grid: dict[str, dict[str, TableEntry]],
    notes: Notes,
    entries: Entries,
) -> Line:
    """A row of a block.

    A failed row says so in its first printed place and is empty elsewhere: what it scored before it
    failed stays in the records, but a mean over a part of the prompts would look like a result.
    """
    row = [grid[c.key][cell.id] for c in kept]
    if cell.status is not Status.OK:
        letter = notes.letter(
            f"{cell.label} {cell.bits}: {cell.status}: {cell.detail or 'no reason kept'}"
        )
        first = next(i for i, c in enumerate(kept) if c.shown)
        row = [TableEntry(text=ABSENT)] * len(kept)
        row[first] = TableEntry(text=str(cell.status), notes=(letter,))
    else:
        row = [
            replace(e, notes=tuple(notes.letter(t) for t in entries.reasons(cell, c, e)))
            for c, e in zip(kept, row, strict=True)
        ]
    return Line(
        cell=cell.id,
        model=cell.model,
        method=cell.method,
        label=cell.label,
        bits=cell.bits,
        status=str(cell.status),
        execution=cell.execution,
        unquantized=cell.unquantized,
        entries=tuple(row),
    )


def _remarks(run: Run, values: Values, blocks: Sequence[Block]) -> list[str]:
    """What a reader must know about the table as a whole and about single rows."""
    found = table_remarks(run, blocks)
    found += _without_block(run, {block.model for block in blocks})
    found += _methods_notes(run, values)
    found += vbench_remarks(run, blocks)
    found += _without_column(run, values, {c.metric for b in blocks for c in b.columns})
    # What went wrong beside the rows, as the run left it: measuring failed, the machine was busy.
    told = [*run.provenance.get("failures", ()), *run.provenance.get("warnings", ())]
    return found + [f"warning: {text}" for text in told]


def table_remarks(run: Run, blocks: Sequence[Block]) -> list[str]:
    """What the intervals, marks and words in the table mean, as far as they occur in it."""
    every = [
        (b, c, line, line.entries[i]) for b in blocks for i, c in b.visible() for line in b.lines
    ]
    found = ["[low, high]: 95 % bootstrap interval of the mean over prompts, seeds averaged first"]
    if any(e.mark in ("best", "second") for *_, e in every):
        found.append(
            "bold best, underlined second among rows of the same bits: only where the paired "
            "interval against the next row excludes zero and the Holm-adjusted p is below 0.05"
        )
    if any(c.kind == col.DELTA for _, c, *_ in every):
        found.append(
            "vs fp: paired difference to the fp row; * where its interval excludes zero and the "
            "Holm-adjusted permutation p is below 0.05"
        )
    if any(cell.method == "control" for cell in run.cells):
        found.append("control: fp repeated; its distance from fp is the noise floor")
    if any(e.text == SIMULATED for *_, e in every):
        found.append(
            "simulated (sim.): low-bit values computed in floating point; no speed and no memory "
            "is claimed"
        )
    if any(e.spread is not None for *_, e in every):
        found.append("latency: median ± interquartile range")
    return found


def _methods_notes(run: Run, values: Values) -> list[str]:
    """What must be said about rows, those with the same note together."""
    notes = grouped_notes(list(run.cells), values)
    return [
        f"{', '.join(dict.fromkeys(f'{c.label} {c.bits}' for c in cells))}: {note}"
        for note, cells in notes.items()
    ]


def _without_block(run: Run, shown: set[str]) -> list[str]:
    """Why a model has no table: how its rows ended, those of one reason in one line."""
    rows: dict[tuple[str, str], list[str]] = {}
    for cell in run.cells:
        if cell.model not in shown and cell.status is not Status.OK:
            why = f"{cell.status}: {cell.detail or 'no reason kept'}"
            rows.setdefault((cell.model, why), []).append(f"{cell.label} {cell.bits}")
    return [f"{model}, {', '.join(labels)}: {why}" for (model, why), labels in rows.items()]


def _without_column(run: Run, values: Values, shown: set[str]) -> list[str]:
    """Metrics that no row has, one line for each status and reason.

    What cannot be judged by VBench at all is said by the run, in one line for many dimensions.
    """
    by_run = {name for name, fact in col.known_metrics(run).items() if fact.block == VBENCH}
    reasons: dict[tuple[Status, str], list[str]] = {}
    for metric in values.metrics():
        why = {
            (r.status, r.detail)
            for r in values.of_metric(metric)
            if r.status is not Status.OK and (r.prompt or metric not in by_run)
        }
        for reason in sorted(why) if metric not in shown else ():
            if reason[1] != REFERENCE_DETAIL:
                reasons.setdefault(reason, []).append(metric)
    return [f"{', '.join(names)} {status}: {why}" for (status, why), names in reasons.items()]
