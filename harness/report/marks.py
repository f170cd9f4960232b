"""Which entries are set off: best and second within the same bits, and differences to fp."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.report import columns as col
from harness.report import stats
from harness.report.table import BEST, DIFFERS, SECOND, TableEntry
from harness.spec import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.report.columns import Column
    from harness.report.values import Values
    from harness.store.records import CellOutcome


def mark_ranks(
    column: Column, entries: dict[str, TableEntry], cells: Sequence[CellOutcome], values: Values
) -> None:
    """Mark the best and the second row of each width, in place, where the next row is separated.

    The comparisons of neighbours in the ranking of one width and one metric form the family that
    Holm adjusts over. The second is marked only behind a marked best.
    """
    if column.kind != col.MEAN or column.better not in ("higher", "lower"):
        return
    sign = 1.0 if column.better == "higher" else -1.0
    for bits in dict.fromkeys(c.bits for c in cells if not c.unquantized):
        scored = {
            c.id: sign * value
            for c in cells
            if c.bits == bits and not c.unquantized and c.status is Status.OK
            if (value := entries[c.id].value) is not None
        }
        ranked = sorted(scored, key=scored.__getitem__, reverse=True)
        by_prompt = [values.by_prompt(cell, column.metric) for cell in ranked]
        neighbours = list(itertools.pairwise(by_prompt))
        tests = stats.holm_family([stats.paired(a, b) for a, b in neighbours])
        for name, cell, test in zip((BEST, SECOND), ranked, tests, strict=False):
            if test is None or not test.separated or sign * test.difference.mean <= 0:
                break
            entries[cell] = replace(entries[cell], mark=name)


def mark_differences(
    column: Column,
    entries: dict[str, TableEntry],
    cells: Sequence[CellOutcome],
    values: Values,
    reference: str,
) -> None:
    """Give differences to fp their adjusted p and mark the separated ones, in place.

    The family is all quantized rows of the model for this metric; ``control`` is a noise floor, not
    a hypothesis, and stays out of it.
    """
    if column.kind != col.DELTA or not reference:
        return
    base = values.by_prompt(reference, column.metric)
    rows = [
        c.id
        for c in cells
        if not c.unquantized and c.status is Status.OK and entries[c.id].value is not None
    ]
    tests = stats.holm_family(
        [stats.paired(values.by_prompt(cell, column.metric), base) for cell in rows]
    )
    for cell, test in zip(rows, tests, strict=True):
        if test is not None:
            mark = DIFFERS if test.separated else ""
            entries[cell] = replace(entries[cell], p_holm=test.p_holm, mark=mark)
