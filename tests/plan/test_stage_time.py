"""Time of a stage: what the journal has, else operations at an assumed rate, else unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness.plan.history import history, recent
from harness.plan.registry import MethodFacts
from harness.plan.stage_time import (
    HALF_FLOPS,
    SINGLE_FLOPS,
    STEP_PASSES,
    UNKNOWN,
    Calibration,
    duration,
    stage_rows,
    work_flops,
)
from harness.store.keys import digest
from harness.store.store import Store
from tests.plan.test_memory import cogvideox

if TYPE_CHECKING:
    from pathlib import Path

NOTHING = {
    "samples": 0, "passes": 0, "steps": 0, "denoiser_passes": 0, "denoiser_steps": 0,
    "searches": False,
}  # fmt: skip


def method(work: dict[str, Any] | None, **options: Any) -> Calibration:
    facts = MethodFacts(
        name="m", version=1, needs_calibration=True, unquantized=False, options=options,
        unsupported={}, work={} if work is None else {"w4a6": {**NOTHING, **work}},
    )  # fmt: skip
    return Calibration(label="m", bits="w4a6", facts=facts)


def row(name: str, *found: Calibration, taken: dict[str, list[float]] | None = None) -> list[str]:
    rows = stage_rows("mine", cogvideox(), taken or {}, found)
    return next([value, note] for stage, value, note in rows if stage == name)


def test_a_clip_that_was_never_made_is_counted_and_one_that_was_is_remembered():
    shape, gen = cogvideox().shape, cogvideox().gen
    value, note = row("denoise a clip")
    assert value == duration(gen.steps * 2 * shape.row_flops / HALF_FLOPS)
    assert note.startswith("estimate for an A100, 125 TFLOP/s")
    taken = {"model:mine": [10.0, 30.0, 20.0], "model:other": [1.0]}
    assert row("denoise and decode a clip", taken=taken)[0] == "20 s"
    names = [name for name, _, _ in stage_rows("mine", cogvideox(), taken, [])]
    assert "denoise a clip" not in names


def test_a_calibration_is_counted_from_the_work_that_its_method_tells():
    sizes = cogvideox()
    flops = sizes.shape.row_flops
    work = {**NOTHING, "samples": 40, "passes": 3, "steps": 600}
    assert work_flops(work, sizes) == (120 * flops, STEP_PASSES * 600 * flops)
    assert work_flops(work, sizes, both=True)[0] == 240 * flops
    through = {**NOTHING, "denoiser_passes": 7, "denoiser_steps": 5}
    assert work_flops(through, sizes) == (7 * flops, STEP_PASSES * 5 * flops)
    seconds = 120 * flops / HALF_FLOPS + STEP_PASSES * 600 * flops / SINGLE_FLOPS
    value, note = row("quantize m w4a6", method(work))
    assert value == duration(seconds)
    assert "training step as" in note
    assert "search" not in note
    assert "search" in row("quantize m w4a6", method({**work, "searches": True}))[1]
    assert row("quantize m w4a6", method(work, branches="both"))[0] == duration(2 * seconds)


def test_what_cannot_be_counted_is_unknown():
    assert row("quantize m w4a6", method(None))[0] == UNKNOWN
    assert row("quantize m w4a6", method({}))[0] == UNKNOWN
    assert row("decode a clip")[0] == UNKNOWN
    everything = stage_rows("mine", None, {}, [method({"samples": 1, "passes": 1})])
    assert {value for _, value, _ in everything} == {UNKNOWN}


def test_an_artifact_is_remembered_by_its_model_and_its_method(tmp_path: Path):
    store = Store(tmp_path)
    for number, of in enumerate(("mine", "other")):
        inputs = {"n": number}
        about = {"label": "m", "of": of, "seconds": 100.0 + number}
        with store.build("artifact", digest(inputs), inputs, about) as folder:
            (folder / "a").write_text("a")
    taken = history(store)
    assert recent(taken, "artifact:mine--m") == 100.0
    assert recent(taken, "artifact:m") == 100.5
    assert row("quantize m w4a6", method({"samples": 1, "passes": 1}), taken=taken)[0] == "1.7 min"
    assert row("quantize m w4a6", method({"samples": 1, "passes": 1}))[0] != "1.7 min"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (89.0, "89 s"), (120.0, "2.0 min"), (7200.0, "2.0 h")]
)
def test_a_time_is_said_in_its_unit(seconds: float, text: str):
    assert duration(seconds) == text
