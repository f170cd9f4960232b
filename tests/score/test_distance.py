"""Metrics beside VBench in a run, and the distance of a row from the reference."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from harness.plan.experiment import resolve
from harness.plan.plan import make_plan
from harness.report.build import build_table
from harness.report.terminal import footer
from harness.score.distance import fvd_to_reference
from harness.spec import Status
from harness.store.keys import Keyed
from harness.store.store import Store
from tests.fake_judge import jobs
from tests.judged_runs import (
    file,
    flags,
    place,
    run,
)

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from harness.task import ClipTask

__all__ = ["place"]


def test_metrics_beside_vbench_say_what_they_lack(place: Path) -> None:
    found = run(place, metrics=("clip", "fvd"))
    skipped = {r.metric: r.detail for r in found.records if r.status is Status.SKIPPED}
    assert "harness fetch clip-weights" in skipped["clipsim"]
    assert skipped["fvd_r3d18_to_fp"] == "needs 1 000 clips, has 3"
    assert not jobs(place / "judge")
    lines = footer(build_table(found))
    assert any(line.startswith("clipsim, clip_temp, ") for line in lines)


def test_the_distance_of_a_row_is_of_the_features_of_all_its_clips(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {}

    def features_of(store: Store, wanted: ClipTask, key: str) -> list[float]:
        del store, wanted
        return drawn.setdefault(key, chance.normal(size=4).tolist())

    monkeypatch.setattr("harness.score.distance._features", features_of)
    experiment = resolve(file(place), flags(place, metrics=("none",)))
    plan = make_plan(experiment, Store())
    toy = plan.cells[1]
    many = dataclasses.replace(
        toy.task,
        clips=tuple(
            dataclasses.replace(
                toy.task.clips[0],
                clip=Keyed(key=f"own {i}", inputs={}),
                reference=f"reference {i}",
            )
            for i in range(1000)
        ),
    )
    found = fvd_to_reference(dataclasses.replace(toy, task=many), Store())
    assert 0 < found["value"] < 0.5
    monkeypatch.setattr(
        "harness.score.distance._features",
        lambda store, wanted, key: [] if key == "own 3" else [1.0],
    )
    lost = fvd_to_reference(dataclasses.replace(toy, task=many), Store())
    assert (lost["value"], lost["detail"]) == (None, "999 of 1000 clips have features")
