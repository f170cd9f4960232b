"""Metrics beside VBench in a run, and the distance of a row from the reference."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from harness.plan.experiment import resolve
from harness.plan.plan import make_plan
from harness.report.build import build_table
from harness.report.terminal import footer
from harness.score.fvd import FrechetDistance
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

    from harness.task import CellTask, ClipTask

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

    def stored(scorer: FrechetDistance, store: Store, clip: str) -> list[float]:
        del scorer, store
        return drawn.setdefault(clip, chance.normal(size=4).tolist())

    def clips(store: Store, task: CellTask) -> list[tuple[ClipTask, str, str]]:
        del store
        return [(wanted, wanted.clip.key, wanted.reference) for wanted in task.clips]

    monkeypatch.setattr("harness.score.fvd.clips_of", clips)
    monkeypatch.setattr(FrechetDistance, "_stored", stored)
    experiment = resolve(file(place), flags(place, metrics=("none",)))
    toy = make_plan(experiment, Store()).cells[1].task
    many = dataclasses.replace(
        toy,
        clips=tuple(
            dataclasses.replace(
                toy.clips[0],
                clip=Keyed(key=f"own {i}", inputs={}),
                reference=f"reference {i}",
            )
            for i in range(1000)
        ),
    )
    (found,) = FrechetDistance().values(Store(), many, {})
    assert found.value is not None
    assert 0 < found.value < 0.5
    assert (found.metric, found.prompt) == ("fvd_r3d18_to_fp", "")
    drawn["own 3"] = []
    (lost,) = FrechetDistance().values(Store(), many, {})
    assert (lost.value, lost.detail) == (None, "999 of 1000 clips have features")
