"""What the number of prompts can resolve: the smallest difference that would have been found."""

from __future__ import annotations

import itertools
import statistics
from typing import TYPE_CHECKING

from harness.report.columns import mean_columns
from harness.report.markdown import escape, row_text
from harness.report.stats import detectable, paired
from harness.spec import VBENCH, Status

if TYPE_CHECKING:
    from harness.report.columns import Column
    from harness.report.values import Values
    from harness.store.records import Run


def resolution(run: Run, values: Values) -> list[str]:
    """The section on resolution; nothing where no two rows of a width are there.

    For every two rows of one model and width the spread of their paired differences says which true
    difference a test at 5 % finds four times in five; shown are the median over the pairs and the
    largest.
    """
    known = values.metrics()
    columns = [c for c in mean_columns(run, values) if c.metric in known and c.block != VBENCH]
    rows = []
    for model in dict.fromkeys(cell.model for cell in run.cells):
        for bits in dict.fromkeys(c.bits for c in run.cells if not c.unquantized):
            cells = [
                c.id
                for c in run.cells
                if c.model == model and c.bits == bits and c.status is Status.OK
            ]
            pairs = list(itertools.combinations(cells, 2))
            if pairs:
                texts = [_text(column, pairs, values) for column in columns]
                rows.append(row_text([escape(model), bits, str(len(pairs)), *texts]))
    if not rows:
        return []
    prompts, seeds = values.clips()
    heads = [
        row_text(["model", "bits", "pairs", *(c.title.replace("\n", " ") for c in columns)]),
        row_text([":--", ":--", *("--:" for _ in range(len(columns) + 1))]),
    ]
    return [
        f"## What n = {len(prompts)} can resolve",
        "The true difference between two rows of one width that a paired test at alpha 0.05 finds "
        f"with 80 % power on these {len(prompts)} prompts and {_seeds(len(seeds))}, from the "
        "spread of the paired differences: median over the pairs of rows (largest in brackets). It "
        "holds for one comparison chosen beforehand; Holm's adjustment over many rows asks for "
        "more. Pairs whose difference is the same on every prompt have no spread to go by and are "
        "left out.",
        "\n".join([*heads, *rows]),
    ]


def _text(column: Column, pairs: list[tuple[str, str]], values: Values) -> str:
    found = []
    for first, second in pairs:
        differences = paired(
            values.by_prompt(first, column.metric), values.by_prompt(second, column.metric)
        )
        if (least := detectable(differences)) is not None:
            found.append(least)
    if not found:
        return "-"
    return f"{column.number(statistics.median(found))} ({column.number(max(found))})"


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"
