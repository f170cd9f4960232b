"""Records on disk: what a run leaves behind and what every table, comparison and gate reads.

A run folder holds ``run.json`` (identity, cells, provenance) and ``records.jsonl`` (one value a
line).
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.spec import Metric, Record, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pandas import DataFrame

RUN_FILE = "run.json"
RECORDS_FILE = "records.jsonl"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class CellOutcome:
    """A row of the table with how it ended.

    Attributes:
        id: ``Cell.id``.
        method: Registered method name.
        label: What the table prints.
        bits: Nominal widths, ``fp`` for unquantized rows.
        unquantized: Whether this is a reference row (``fp``, ``control``).
        detail: Reason for a status other than ``ok``.
        execution: ``simulated``, ``kernel:<name>``, ``dequantize`` or ``dequantize:<library>``;
            empty for reference rows.
        linears: How many quantized linears compute in each way.
        reasons: Why linears are simulated, and how many for each reason.
        report: The method's ``QuantReport`` as a dict, None for reference and failed rows.
        artifact: Folder of the quantized model in the store; empty for reference and failed rows.
    """

    id: str
    model: str
    method: str
    label: str
    bits: str
    suite: str
    status: Status
    detail: str = ""
    unquantized: bool = False
    execution: str = ""
    report: dict[str, Any] | None = None
    artifact: str = ""
    linears: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A finished or interrupted run as read from its folder.

    Attributes:
        id: Digest prefix of the experiment; the same command gives the same id.
        folder: Where it lies.
        experiment: The resolved experiment, every default filled in.
        suites: By name: version, digest, role, number of prompts used.
        cohort: What paired metrics must share: device, torch, diffusers, dtype, threads...
        provenance: Versions, git commit, machine, command line, time.
        cells: In table order.
        records: All values.
        metrics: Facts of the metrics that the records have, in the order of a table's columns;
            empty in a run that 0.1.0 wrote.
    """

    id: str
    folder: Path
    experiment: dict[str, Any]
    suites: dict[str, Any]
    cohort: dict[str, Any]
    provenance: dict[str, Any]
    cells: tuple[CellOutcome, ...]
    records: tuple[Record, ...]
    metrics: tuple[Metric, ...] = ()

    def frame(self) -> DataFrame:
        """All records as a DataFrame: a line for each value, a column for each field."""
        import pandas as pd

        fields = [f.name for f in dataclasses.fields(Record)]
        rows = [[getattr(record, name) for name in fields] for record in self.records]
        return pd.DataFrame(rows, columns=fields).astype({"status": str})


def write_run(run: Run) -> None:
    """Write ``run.json`` and ``records.jsonl``, each replaced in one step."""
    from harness.store.durable import replace_file

    head = {
        "schema": SCHEMA,
        "run": run.id,
        "experiment": run.experiment,
        "suites": run.suites,
        "cohort": run.cohort,
        "provenance": run.provenance,
        "cells": [dataclasses.asdict(cell) for cell in run.cells],
        "metrics": [dataclasses.asdict(metric) for metric in run.metrics],
    }
    replace_file(run.folder / RUN_FILE, json.dumps(head, indent=1, sort_keys=True) + "\n")
    replace_file(run.folder / RECORDS_FILE, "".join(f"{line}\n" for line in dump(run.records)))


def dump(records: Iterable[Record]) -> list[str]:
    """One JSON line for each record."""
    return [json.dumps(dataclasses.asdict(r), sort_keys=True, allow_nan=False) for r in records]


def parse(lines: Sequence[str]) -> list[Record]:
    """Read records back from JSON lines."""
    fields = {f.name for f in dataclasses.fields(Record)}
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
    for row in rows:
        row["status"] = Status(row["status"])
    return [Record(**{k: v for k, v in row.items() if k in fields}) for row in rows]


def load_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        HarnessError: The folder is not a run, is damaged, or was written by another schema.
    """
    try:
        head = json.loads((folder / RUN_FILE).read_text())
    except (OSError, ValueError) as cause:
        raise HarnessError(
            f"'{folder}' is not a run folder ({cause.__class__.__name__})",
            f"give a folder that holds {RUN_FILE}; `harness run` prints it in its last line",
        ) from cause
    found = head.get("schema") if isinstance(head, dict) else None
    if found != SCHEMA:
        raise HarnessError(
            f"run '{folder}' has schema {found}, this version reads {SCHEMA}",
            "run it again with this version; the store keeps what is still valid",
        )
    try:
        return _run(folder, head)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise HarnessError(
            f"the files of run '{folder}' are damaged ({cause.__class__.__name__}: {cause})",
            "type the command of the run again; it finds in the store what it made",
        ) from cause


def _run(folder: Path, head: dict[str, Any]) -> Run:
    """The run whose ``run.json`` holds ``head``."""
    path = folder / RECORDS_FILE
    return Run(
        id=head["run"],
        folder=folder,
        experiment=head["experiment"],
        suites=head["suites"],
        cohort=head["cohort"],
        provenance=head["provenance"],
        cells=tuple(
            CellOutcome(**{**cell, "status": Status(cell["status"])}) for cell in head["cells"]
        ),
        metrics=tuple(_metric(facts) for facts in head.get("metrics", ())),
        records=tuple(parse(path.read_text().splitlines()) if path.exists() else ()),
    )


def _metric(facts: dict[str, Any]) -> Metric:
    """Facts of a metric as a run folder has them; what another version added is passed over."""
    known = {f.name for f in dataclasses.fields(Metric)}
    return Metric(**{name: value for name, value in facts.items() if name in known})


def by_prompt(values: Iterable[tuple[str, int, float]]) -> dict[str, float]:
    """Average the seeds of each prompt.

    Args:
        values: (prompt id, seed, value).

    Returns:
        Mean over seeds by prompt id, in order of first appearance.
    """
    seeds: dict[str, list[float]] = {}
    for prompt, _, value in values:
        seeds.setdefault(prompt, []).append(value)
    return {prompt: math.fsum(found) / len(found) for prompt, found in seeds.items()}
