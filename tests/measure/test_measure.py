from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from harness.errors import HarnessError
from harness.measure.measure import MEASURE_FILE, execution, measure
from harness.models.table import model_spec
from harness.store.keys import Keyed, digest
from harness.store.store import Store
from harness.task import MeasuredRow, MeasureTask

if TYPE_CHECKING:
    from pathlib import Path


def test_every_row_is_timed_and_its_memory_taken(
    tmp_path: Path, tiny_pipeline_folder: Path
) -> None:
    store = Store(tmp_path)
    model = model_spec(str(tiny_pipeline_folder))
    gen = dataclasses.replace(model.gen, steps=2, guidance=4.0)
    inputs = {"test": 1}
    task = MeasureTask(
        id="measure",
        model=model,
        gen=gen,
        rows=(MeasuredRow(cell="fp", artifact=""), MeasuredRow(cell="control", artifact="")),
        measure=Keyed(key=digest(inputs), inputs=inputs),
        rounds=3,
        clips=2,
    )
    told: list[float] = []
    measure(task, store, "cpu", lambda fraction, text: told.append(fraction))
    entry = store.find("measure", task.measure.key)
    assert entry is not None
    found = entry.json(MEASURE_FILE)
    assert 0 <= found["busy"] <= 1
    for values in found["values"].values():
        assert set(values) == {
            "peak_bytes",
            "step_latency_s",
            "step_latency_iqr_s",
            "clip_latency_s",
            "clip_latency_iqr_s",
        }
        assert 0 < values["step_latency_s"] < values["clip_latency_s"]
        assert values["peak_bytes"] > 50e6
    assert told == sorted(told)


def test_a_simulated_row_is_known_by_its_report(tmp_path: Path) -> None:
    store, inputs = Store(tmp_path), {"n": 1}
    with store.build("artifact", digest(inputs), inputs) as folder:
        (folder / "report.json").write_text(json.dumps({"execution": "kernel:int8"}))
    assert execution(store, digest(inputs)) == "kernel:int8"
    with pytest.raises(HarnessError, match="is gone"):
        execution(store, "0" * 64)
