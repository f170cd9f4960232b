"""What is asked of a judge, and what a run does with its answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.errors import UsageError
from harness.plan.estimate import Estimate, estimate
from harness.plan.experiment import resolve
from harness.plan.experiment_file import ExperimentFile
from harness.plan.plan import make_plan
from harness.report.build import build_table
from harness.report.terminal import footer
from harness.run.run import prepare
from harness.spec import Status
from harness.store.keys import digest
from harness.store.records import load_run
from harness.store.store import Store
from harness.vbench import weights
from harness.vbench.dimensions import EIGHT
from tests.fake_judge import jobs, keys, value_of, write_judge
from tests.fake_run import Quiet, fake_run
from tests.judged_runs import (
    FLICKER,
    TOY,
    file,
    flags,
    of,
    place,
    run,
    write_weights,
)

if TYPE_CHECKING:
    from harness.task import Event

__all__ = ["place"]


def test_flickering_is_judged_unasked_where_there_is_a_judge(place: Path) -> None:
    found = run(place)
    records = of(found, FLICKER)
    assert len(records) == 2 * 3
    for record in records:
        clip = place / "out" / "clips" / record.cell / f"{record.prompt}-s0.mp4"
        assert record.value == value_of(str(clip), "temporal_flickering")
        assert record.scorer.startswith("vbench 0.1.5, no weights, ")
        assert record.scorer.endswith(", float32")
    assert load_run(place / "out").records == found.records
    lines = footer(build_table(found))
    assert sum("--metrics vbench-8" in line for line in lines) == 1
    assert sum(line.startswith("judged by vbench 0.1.5") for line in lines) == 1


def test_the_judge_gets_its_own_surroundings_and_the_job_that_was_agreed(place: Path) -> None:
    found = run(place, vbench={"batch": 4})
    (job,) = jobs(place / "judge")
    around = job["surroundings"]
    folder = str(weights.folder())
    assert (around["cwd"], around["VBENCH_CACHE_DIR"]) == (folder, folder)
    assert around["TORCH_HOME"] == f"{folder}/torch"
    assert Path(around["PYTHONPATH"]).name == "foreign"
    assert (around["HF_HUB_OFFLINE"], around["OMP_NUM_THREADS"]) == ("1", "1")
    assert (job["schema"], job["scorer"], job["device"]) == (1, "shared", "cpu")
    assert (job["precision"], job["batch"], job["threads"]) == ("float32", 4, 1)
    assert len({clip["id"] for clip in job["clips"]}) == len(job["clips"]) == 6
    assert {clip["prompt"] for clip in job["clips"]} == {f"prompt number {i}" for i in range(3)}
    assert not Path(job["scratch"]).exists()
    assert found.provenance["judges"] == [
        {"decodes": 6, "models": {}, "pairs": {"run": 0, "of": 0}}
    ]


def test_the_same_command_judges_nothing_again(place: Path) -> None:
    first = run(place)
    monitor = Quiet()
    again, prepared = fake_run(flags(place), file(place), monitor)
    assert monitor.seen == []
    assert again.records == first.records
    assert not prepared.plan.scores
    assert len(jobs(place / "judge")) == 1


def test_a_run_whose_clips_are_there_judges_only(place: Path) -> None:
    fake_run(flags(place, metrics=("none",)), file(place))
    monitor = Quiet()
    fake_run(flags(place), file(place), monitor)
    started = [line for line in monitor.seen if line.startswith("start")]
    assert started
    assert all(line.startswith("start judge--") for line in started)


def test_clips_of_equal_bytes_are_judged_once(place: Path) -> None:
    found = run(place, TOY, "control")
    asked = keys(place / "judge")
    assert len(asked) == len(set(asked)) == 2 * 3
    by_row = {r.cell: [] for r in found.records}  # type: ignore[var-annotated]
    for record in of(found, FLICKER):
        by_row[record.cell].append(record.value)
    assert by_row["model--fp--fp"] == by_row["model--control--fp"]
    assert len(of(found, FLICKER)) == 3 * 3


def test_without_a_judge_one_line_says_how_to_get_one(place: Path) -> None:
    found, _ = fake_run(flags(place))
    assert not of(found, FLICKER)
    lines = footer(build_table(found))
    assert sum("harness fetch vbench" in line for line in lines) == 1
    asked, _ = fake_run(flags(place, metrics=("vbench-8",)))
    skipped = [r for r in asked.records if r.metric in EIGHT]
    assert len(skipped) == 2 * 8
    assert {(r.status, r.value) for r in skipped} == {(Status.SKIPPED, None)}
    assert {r.detail for r in skipped} == {"vbench is not installed: harness fetch vbench"}
    assert sum("harness fetch vbench" in line for line in footer(build_table(asked))) == 1


def test_dimensions_without_weights_are_skipped_with_the_command(place: Path) -> None:
    write_weights("dynamic_degree")
    found = run(place, metrics=("dynamic_degree", "motion_smoothness", "imaging_quality"))
    assert all(r.status is Status.OK for r in of(found, "dynamic_degree"))
    for name in ("motion_smoothness", "imaging_quality"):
        assert {r.status for r in of(found, name)} == {Status.SKIPPED}
        assert all(f"--dimension {name}" in r.detail for r in of(found, name))
    lines = [line for line in footer(build_table(found)) if "fetch vbench-weights" in line]
    assert len(lines) == 1
    assert "--dimension motion_smoothness --dimension imaging_quality" in lines[0]
    assert "stand-in weights" in of(found, "dynamic_degree")[0].scorer
    assert found.provenance["failures"] == []


def test_a_dimension_that_is_not_for_own_prompts_is_unsupported(place: Path) -> None:
    write_weights("scene")
    found = run(place, metrics=("scene", "temporal_flickering"))
    assert {r.status for r in of(found, "scene")} == {Status.UNSUPPORTED}
    assert len(of(found, FLICKER)) == 6


def test_a_detector_that_is_not_installed_is_unsupported(place: Path) -> None:
    found = run(place, metrics=("color",), suite="vbench-subset-11")
    assert {r.status for r in of(found, "color")} == {Status.UNSUPPORTED}
    assert all("detectron2" in r.detail for r in of(found, "color"))


def test_trouble_in_one_dimension_leaves_the_others_and_is_tried_again(place: Path) -> None:
    write_weights("dynamic_degree", "imaging_quality")
    trouble = {"dynamic_degree": ["oom", "needs 80 GB"]}
    write_judge(place / "judge", place / "VBench_full_info.json", trouble=trouble)
    chosen = ("dynamic_degree", "imaging_quality")
    found = run(place, metrics=chosen)
    lost = of(found, "dynamic_degree")
    assert {(r.status, r.detail) for r in lost} == {(Status.OOM, "needs 80 GB")}
    assert all(r.status is Status.OK for r in of(found, "imaging_quality"))
    assert found.provenance["failures"] == ["dynamic_degree: oom for 6 clips: needs 80 GB"]
    whole = {r.status for r in of(found, "official_dynamic_degree")}
    assert whole == {Status.SKIPPED}
    write_judge(place / "judge", place / "VBench_full_info.json")
    again = run(place, metrics=chosen)
    assert all(r.status is Status.OK for r in of(again, "dynamic_degree"))
    asked = [w["dimension"] for c in jobs(place / "judge")[1]["clips"] for w in c["wants"]]
    assert asked == ["dynamic_degree"] * 6


def test_a_property_of_the_clip_is_kept_and_not_tried_again(place: Path) -> None:
    reason = {"temporal_flickering": "has 1 frame, needs 2"}
    write_judge(place / "judge", place / "VBench_full_info.json", unscorable=reason)
    found = run(place)
    said = {(r.status, r.detail) for r in of(found, FLICKER)}
    assert said == {(Status.ERROR, "has 1 frame, needs 2")}
    run(place)
    assert len(jobs(place / "judge")) == 1


def test_a_judge_that_dies_costs_its_values_and_the_next_run_goes_on(place: Path) -> None:
    info = place / "VBench_full_info.json"
    write_judge(place / "judge", info, die_after=2)
    found = run(place)
    values = of(found, FLICKER)
    assert [r.status for r in values].count(Status.OK) == 2
    lost = [r for r in values if r.status is not Status.OK]
    assert {r.status for r in lost} == {Status.KILLED}
    assert all("the judge ended before" in r.detail for r in lost)
    assert any("judging: killed" in text for text in found.provenance["failures"])
    assert {cell.status for cell in found.cells} == {Status.OK}
    write_judge(place / "judge", info)
    again = run(place)
    assert all(r.status is Status.OK for r in of(again, FLICKER))
    first, second = jobs(place / "judge")
    assert (len(first["clips"]), len(second["clips"])) == (6, 4)
    assert again.provenance["failures"] == []


def test_a_run_that_is_stopped_while_judging_loses_no_value(place: Path) -> None:
    class Impatient(Quiet):
        def event(self, event: Event) -> None:
            super().event(event)
            if self.seen.count("score judge--1") == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fake_run(flags(place), file(place), Impatient())
    assert not list((Store().root / "tmp").iterdir())
    found = run(place)
    assert all(r.status is Status.OK for r in of(found, FLICKER))
    first, second = jobs(place / "judge")
    assert (len(first["clips"]), len(second["clips"])) == (6, 2)


def test_other_weights_are_other_scores(place: Path) -> None:
    write_weights("imaging_quality")
    run(place, metrics=("imaging_quality",))
    for path in weights.folder().rglob("*.pth"):
        path.write_text("other weights")
    run(place, metrics=("imaging_quality",))
    assert len(set(keys(place / "judge"))) == 12


def test_a_rough_time_is_known_before_and_learned_from_what_was_judged(place: Path) -> None:
    def guess() -> Estimate:
        experiment = resolve(file(place), flags(place, metrics=("scene",), suite="vbench-8"))
        return estimate(make_plan(experiment, Store()), Store())

    write_weights("scene")
    name, store = "judge--1", Store()
    first = guess()
    assert first.work_s[name] > 8.0
    key = {"any": "thing"}
    about = {"label": "vbench:scene", "seconds": 1000.0}
    with store.build("score", digest(key), key, about) as folder:
        (folder / "score.json").write_text("{}")
    learned = guess()
    assert learned.work_s[name] == pytest.approx(8.0 + 2 * 86 * 1000.0)


def test_approximate_values_are_labelled_and_are_others(place: Path) -> None:
    run(place)
    found = run(place, vbench={"precision": "bfloat16"})
    assert of(found, FLICKER)[0].scorer.endswith("bfloat16 (approximate)")
    assert len(set(keys(place / "judge"))) == 12
    assert any("approximate" in line for line in footer(build_table(found)))


def test_the_run_id_does_not_depend_on_the_judge_but_on_what_it_is_asked(place: Path) -> None:
    def run_id(content: ExperimentFile, **more: object) -> str:
        return prepare(resolve(content, flags(place, **more)), Store()).plan.run

    bare = ExperimentFile.model_validate({"execution": {"measure": False}})
    plain = run_id(bare)
    assert run_id(file(place)) == plain
    assert run_id(file(place, shards=3)) == plain
    assert run_id(file(place), metrics=("none",)) != plain
    assert run_id(file(place), metrics=("vbench-8",)) == run_id(bare, metrics=("vbench-8",))
    assert run_id(file(place, precision="bfloat16")) != plain


def test_a_broken_judge_is_an_error_only_where_somebody_asked_for_it(place: Path) -> None:
    content = ExperimentFile.model_validate({"envs": {"vbench": {"python": str(place / "none")}}})
    with pytest.raises(UsageError, match="cannot score"):
        prepare(resolve(content, flags(place)), Store())
    registered = place / "home" / "envs" / "vbench.json"
    registered.parent.mkdir(parents=True, exist_ok=True)
    registered.write_text(f'{{"python": "{place / "gone"}"}}')
    quiet = prepare(resolve(ExperimentFile(), flags(place)), Store())
    assert any("no longer works" in text for text in quiet.plan.vbench.remarks)
    asked = resolve(ExperimentFile(), flags(place, metrics=("vbench-8",)))
    with pytest.raises(Exception, match="no longer works"):
        prepare(asked, Store())
