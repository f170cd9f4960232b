from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from harness.errors import HarnessError
from harness.spec import Record, Status
from harness.store.records import (
    RECORDS_FILE,
    RUN_FILE,
    CellOutcome,
    Run,
    dump,
    load_run,
    parse,
    write_run,
)

if TYPE_CHECKING:
    from pathlib import Path

RECORD = Record(
    run="r",
    cell="m--s2q--w4a6",
    model="m",
    method="s2q",
    bits="w4a6",
    suite="s",
    metric="psnr_db",
    prompt="p",
    seed=0,
    value=30.25,
    unit="dB",
    better="higher",
)
SKIPPED = dataclasses.replace(
    RECORD, metric="lpips", value=None, status=Status.SKIPPED, detail="no weights"
)
CELL = CellOutcome(
    id="m--s2q--w4a6",
    model="m",
    method="s2q",
    label="s2q",
    bits="w4a6",
    suite="s",
    status=Status.OK,
    report={"layers": []},
)


def run(folder: Path) -> Run:
    return Run(
        id="r",
        folder=folder,
        experiment={"limit": 2},
        suites={"s": {"digest": "d"}},
        cohort={"device": "x"},
        provenance={"at": "now"},
        cells=(CELL,),
        records=(RECORD, SKIPPED),
    )


def test_a_run_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_run(run(tmp_path))
    assert load_run(tmp_path) == run(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_records_of_a_later_version_are_read_without_their_new_fields() -> None:
    line = json.dumps({**json.loads(dump([RECORD])[0]), "invented_later": 1})
    assert parse([line, ""]) == [RECORD]


def test_a_value_that_is_no_number_is_never_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump([dataclasses.replace(RECORD, value=float("nan"))])


def test_what_is_no_run_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="is not a run folder"):
        load_run(tmp_path)
    (tmp_path / RUN_FILE).write_text("{half")
    with pytest.raises(HarnessError, match="is not a run folder"):
        load_run(tmp_path)
    (tmp_path / RUN_FILE).write_text('{"schema": 99}')
    with pytest.raises(HarnessError, match="has schema 99"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (RUN_FILE, '{"schema": 1}'),
        (RUN_FILE, '{"schema": 1, "run": "r", "cells": 3}'),
        (RECORDS_FILE, "{half"),
        (RECORDS_FILE, "7"),
        (RECORDS_FILE, '{"run": "r"}'),
        (RECORDS_FILE, '{"status": "better"}'),
        (RECORDS_FILE, "\udcff"),
    ],
)
def test_damaged_files_of_a_run_are_said_so(tmp_path: Path, name: str, text: str) -> None:
    write_run(run(tmp_path))
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(HarnessError, match="are damaged") as caught:
        load_run(tmp_path)
    assert "the command of the run" in caught.value.hint


def test_a_run_file_that_is_a_list_is_said_so(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text("[1]")
    with pytest.raises(HarnessError, match="has schema None"):
        load_run(tmp_path)
