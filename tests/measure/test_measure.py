from __future__ import annotations

import dataclasses
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import harness.models.load
from harness.errors import HarnessError
from harness.generate.text import EMPTY, encode_missing, text_keys
from harness.measure.measure import MEASURE_FILE, _in_child, measure
from harness.models.table import model_spec
from harness.store.keys import Keyed, digest
from harness.store.store import Store
from harness.task import MeasuredRow, MeasureTask, TextTask

if TYPE_CHECKING:
    from pathlib import Path


def test_every_row_is_timed_and_its_memory_taken(
    tmp_path: Path, tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    model = model_spec(str(tiny_pipeline_folder))
    gen = dataclasses.replace(model.gen, steps=2, guidance=4.0)
    inputs = {"test": 1}
    texts = text_keys([EMPTY], model, gen, {})
    encode_missing(
        TextTask(id="text", model=model, gen=gen, texts=texts), store, "cpu", lambda f, t: None
    )
    opened = tmp_path / "opened"
    watch(monkeypatch, opened)
    task = MeasureTask(
        id="measure",
        model=model,
        gen=gen,
        rows=(MeasuredRow(cell="fp", artifact=""), MeasuredRow(cell="control", artifact="")),
        measure=Keyed(key=digest(inputs), inputs=inputs),
        turns=2,
        steps=3,
        text=texts[EMPTY].key,
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
    # in each turn two rows and the decoder, in a process each
    assert opened.read_text().split() == ["denoiser", "denoiser", "decoder"] * 2


def test_a_turn_that_fails_is_named_and_its_reason_is_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Any:
        raise ZeroDivisionError("no time at all")

    with pytest.raises(HarnessError, match="measuring some--row failed"):
        _in_child(broken, "some--row")
    assert "no time at all" in capfd.readouterr().err


def watch(monkeypatch: pytest.MonkeyPatch, opened: Path) -> None:
    """Write down the part of each pipeline that is opened, and that no other is alive then."""
    seen: list[weakref.ref[Any]] = []
    load = harness.models.load.load_pipeline

    def noted(*given: Any, **how: Any) -> Any:
        (part,) = how["parts"]
        assert all(network() is None for network in seen)
        with opened.open("a") as file:
            file.write(f"{part}\n")
        pipeline = load(*given, **how)
        seen.append(weakref.ref(pipeline.transformer if part == "denoiser" else pipeline.vae))
        return pipeline

    monkeypatch.setattr("harness.models.load.load_pipeline", noted)
