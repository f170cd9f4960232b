"""What is particular to VBench's columns: which are printed and what their reader must know."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.report import columns as col

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.report.columns import Column
    from harness.report.table import Block, TableEntry
    from harness.store.records import Run


def revealed(
    columns: Sequence[Column], grid: Mapping[str, Mapping[str, TableEntry]]
) -> list[Column]:
    """Print an official aggregate where some row's differs from our mean by what is printed."""
    ours = {c.metric: c for c in columns if c.kind == col.MEAN}
    found = []
    for column in columns:
        mean = ours.get(column.fact.aggregate_of)
        if column.fact.aggregate_of and mean is not None:
            differs = any(
                entry.value is not None
                and mean.number(entry.value) != _number(mean, grid[mean.key][row])
                for row, entry in grid[column.key].items()
            )
            found.append(replace(column, fact=replace(column.fact, shown=differs)))
        else:
            found.append(column)
    return found


def _number(column: Column, entry: TableEntry) -> str:
    return "" if entry.value is None else column.number(entry.value)


def remarks(run: Run, blocks: Sequence[Block]) -> list[str]:
    """What the run says of its judge, and how the columns that are printed are to be read."""
    shown = [c.fact for b in blocks for _, c in b.visible()]
    found = []
    if any(fact.closeness for fact in shown):
        found.append(
            "consistency, smoothness and flickering are high for clips that hardly move, also for "
            "collapsed ones, dynamic degree for noise: closer to fp is the right reading"
        )
    if any(fact.aggregate_of for fact in shown):
        found.append(
            "VBench: mean over prompts; official: the package's own aggregate, which weighs clips "
            "by their frames or leaves some out"
        )
    return found + [str(text) for text in run.provenance.get("remarks", ())]
