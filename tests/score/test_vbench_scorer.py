"""The records, aggregates and totals of judged runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.errors import UsageError
from harness.plan.experiment import resolve
from harness.plan.plan import make_plan
from harness.report.build import build_table
from harness.report.csv import comma_separated
from harness.report.terminal import footer
from harness.score.registry import builtin_metrics
from harness.spec import Status
from harness.store.store import Store
from harness.vbench.dimensions import CLOSENESS, DIMENSIONS, EIGHT
from harness.vbench.totals import totals
from tests.fake_judge import jobs, keys, write_judge
from tests.judged_runs import (
    FLICKER,
    file,
    flags,
    of,
    one,
    place,
    run,
    write_weights,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["place"]


@pytest.mark.parametrize("shards", [2, 5])
def test_the_values_do_not_depend_on_the_number_of_shards(
    place: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    chosen = ("imaging_quality", "color", "object_class")
    found = {}
    for count in (1, shards):
        monkeypatch.setenv("HARNESS_HOME", str(place / f"home-{count}"))
        write_weights(*DIMENSIONS)
        folder = place / "judge"
        (folder / "jobs.jsonl").unlink(missing_ok=True)
        versions = {"detectron2": "0.6"}
        write_judge(folder, place / "VBench_full_info.json", versions=versions)
        out = place / f"out-{count}"
        done = run(
            place, metrics=chosen, suite="vbench-subset-24", out=out, vbench={"shards": count}
        )
        assert len(jobs(folder)) == count
        assert len(keys(folder)) == len(set(keys(folder)))
        found[count] = {(r.cell, r.metric, r.prompt): r.value for r in done.records}
    assert found[1] == found[shards]
    assert any(metric == "official_color" for _, metric, _ in found[1])


def test_clips_that_the_official_code_leaves_out_do_not_count(place: Path) -> None:
    write_weights("color")
    manners = {"versions": {"detectron2": "0.6"}, "invalid": ["color"]}
    write_judge(place / "judge", place / "VBench_full_info.json", **manners)
    found = run(place, metrics=("color",), suite="vbench-subset-24")
    assert {r.status for r in of(found, "color")} == {Status.SKIPPED}
    assert {r.value for r in of(found, "color_strict")} == {0.0}
    detail = one(found, "official_color", "fp").detail
    assert detail.startswith("0 of ")
    assert detail.endswith("clips count")


def test_a_suite_of_vbench_asks_for_its_own_dimensions_and_clips(place: Path) -> None:
    write_weights(*EIGHT)
    experiment = resolve(file(place), flags(place, suite="vbench-8"))
    plan = make_plan(experiment, Store())
    assert experiment.limit is None
    assert plan.vbench.wanted == EIGHT
    assert len(plan.cells[0].task.clips) == 251
    cells = len(plan.cells)
    per_cell = {n: plan.scores[n] // cells for n in EIGHT}
    assert per_cell == {
        **dict.fromkeys(("imaging_quality", "aesthetic_quality", "overall_consistency"), 93),
        **dict.fromkeys(("subject_consistency", "dynamic_degree", "motion_smoothness"), 72),
        **dict.fromkeys(("scene", "background_consistency"), 86),
    }
    full = make_plan(resolve(file(place), flags(place, suite="vbench-full")), Store())
    assert len(full.cells[0].task.clips) == 871 * 5 + 75 * 25
    flickering = [p for p, n in full.vbench.per_prompt.items() if "temporal_flickering" in n]
    assert all("static_filter" in full.vbench.per_prompt[p] for p in flickering)
    with pytest.raises(UsageError, match="cannot be cut"):
        make_plan(resolve(file(place), flags(place, suite="vbench-8", limit=3)), Store())
    own = make_plan(resolve(file(place), flags(place, suite="vbench-8", seeds=(4, 5))), Store())
    assert [c.seed for c in own.cells[0].task.clips[:2]] == [4, 5]


def test_a_whole_set_of_official_aggregates_gives_the_totals_and_nothing_less_does(
    place: Path,
) -> None:
    write_weights(*DIMENSIONS, "static_filter")
    manners = {"versions": {"detectron2": "0.6"}}
    write_judge(place / "judge", place / "VBench_full_info.json", **manners)
    found = run(place, suite="vbench-subset-11")
    assert {r.metric for r in of(found, "vbench_total")} == set()
    assert one(found, "official_scene", "fp").value is not None
    assert one(found, f"official_{FLICKER}", "fp").value is not None
    warned = " ".join(found.provenance["remarks"])
    assert "not to be quoted as VBench numbers" in warned
    assert FLICKER in warned
    content = comma_separated(build_table(found))
    head = content.splitlines()[0].split(",")
    shown = [name for name in head if name in EIGHT]
    assert shown == list(EIGHT)
    assert "official_scene" in head


def test_filtered_flickering_completes_the_totals(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.score.vbench_plan.filters_static", lambda suite: True)
    write_weights(*DIMENSIONS, "static_filter")
    versions = {"detectron2": "0.6"}
    info = place / "VBench_full_info.json"
    write_judge(place / "judge", info, versions=versions)
    asked = (*DIMENSIONS, "static_filter")
    found = run(place, suite="vbench-subset-11", metrics=asked)
    official = {name: one(found, f"official_{name}", "fp").value for name in DIMENSIONS}
    expected = totals(official)
    assert one(found, "vbench_quality", "fp").value == expected.quality
    assert one(found, "vbench_semantic", "fp").value == expected.semantic
    assert one(found, "vbench_total", "fp").value == expected.total
    assert not of(found, FLICKER)
    assert "vbench_total" in comma_separated(build_table(found)).splitlines()[0]
    monkeypatch.setenv("HARNESS_HOME", str(place / "other"))
    write_weights(*DIMENSIONS, "static_filter")
    write_judge(place / "judge", info, versions=versions, moving=True)
    moving = run(place, suite="vbench-subset-11", metrics=asked, out=place / "moving")
    assert one(moving, "official_temporal_flickering", "fp").value is None
    assert not of(moving, "vbench_total")


def test_samples_are_numbered_by_their_place_among_the_seeds(place: Path) -> None:
    run(place, seeds=(7, 11))
    (job,) = jobs(place / "judge")
    assert sorted({clip["index"] for clip in job["clips"]}) == [0, 1]


def test_what_the_list_says_of_a_prompt_reaches_the_judge_and_the_key(place: Path) -> None:
    write_weights("scene")
    run(place, suite="vbench-subset-24", metrics=("scene",))
    (job,) = jobs(place / "judge")
    wants = [want for clip in job["clips"] for want in clip["wants"]]
    assert wants
    assert all(want["auxiliary"] == {"scene": {"scene": "quarry"}} for want in wants)
    asked = Store().find("score", wants[0]["key"])
    assert asked is not None
    assert asked.manifest["inputs"]["asked"] == {"auxiliary": '{"scene":{"scene":"quarry"}}'}
    assert "stand-in" in asked.json("score.json")["scorer"]


def test_values_that_no_row_has_are_explained_under_the_table(place: Path) -> None:
    write_weights("motion_smoothness")
    reason = {"motion_smoothness": "has 2 frames, needs 3"}
    write_judge(place / "judge", place / "VBench_full_info.json", unscorable=reason)
    found = run(place, metrics=("motion_smoothness",))
    lines = footer(build_table(found))
    assert lines.count("motion_smoothness error: has 2 frames, needs 3") == 1


def direction(name: str) -> str:
    return next(metric.better for metric in builtin_metrics() if metric.name == name)


@pytest.mark.parametrize("name", [*CLOSENESS, FLICKER, "clip_temp", "clip_temp_evalcrafter"])
def test_what_a_broken_clip_can_lead_has_no_better_direction(name: str) -> None:
    assert direction(name) == "none"


@pytest.mark.parametrize("name", ["imaging_quality", "official_scene", "color_strict", "clipsim"])
def test_the_other_dimensions_are_better_the_higher(name: str) -> None:
    assert direction(name) == "higher"
