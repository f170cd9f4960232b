"""Runs whose clips are judged, with a faked judge."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harness.config import Flags, resolve
from harness.distance import fvd_to_reference
from harness.errors import UsageError
from harness.estimate import Estimate, estimate
from harness.experiment_file import ExperimentFile
from harness.keys import digest
from harness.plan import make_plan
from harness.records import load_run
from harness.report.build import build_table
from harness.report.csv import comma_separated
from harness.report.terminal import footer
from harness.run import prepare
from harness.spec import Record, Status
from harness.store import Store
from harness.task import ClipTask, Keyed
from harness.vbench import weights
from harness.vbench.dimensions import DIMENSIONS, EIGHT
from harness.vbench.totals import totals
from tests.doubles import write_model_folder
from tests.fake_judge import jobs, keys, value_of, write_judge
from tests.fake_run import Quiet, fake_run
from tests.vbench import made_list

if TYPE_CHECKING:
    from harness.executors.base import Event
    from harness.records import Run

TOY = "tests.doubles:Toy"
ROOT = Path(__file__).resolve().parent.parent
FLICKER = "temporal_flickering_unfiltered"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, prompts, a store and a judge of its own."""
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_model_folder(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt number {i}" for i in range(3)))
    write_judge(tmp_path / "judge", made_list.write(tmp_path))
    return tmp_path


def flags(place: Path, *methods: str, **more: object) -> Flags:
    given: dict[str, object] = {
        "models": (str(place / "model"),),
        "methods": methods or (TOY,),
        "suite": str(place / "prompts.txt"),
        "out": place / "out",
        "baselines": False,
        **more,
    }
    return Flags(**given)  # type: ignore[arg-type]


def file(place: Path, **vbench: object) -> ExperimentFile:
    python = str(place / "judge" / "python")
    content = {
        "envs": {"vbench": {"python": python}},
        "vbench": {"shards": 1, **vbench},
        "execution": {"measure": False},
    }
    return ExperimentFile.model_validate(content)


def run(place: Path, *methods: str, vbench: dict[str, object] | None = None, **more: Any) -> Run:
    return fake_run(flags(place, *methods, **more), file(place, **(vbench or {})))[0]


def write_weights(*dimensions: str) -> None:
    """Empty files where the weights belong, said to be no official ones."""
    folder = weights.folder()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / weights.STAND_IN).write_text("empty files of a test\n")
    for name in weights.ids_of(dimensions):
        for one in weights.table()[name].files:
            path = folder / one.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)


def of(found: Run, metric: str) -> list[Record]:
    return [record for record in found.records if record.metric == metric]


def one(found: Run, metric: str, label: str) -> Record:
    named = [r for r in of(found, metric) if r.cell.split("--")[1] == label]
    assert len(named) == 1
    return named[0]


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
    assert plan.judging.wanted == EIGHT
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
    flickering = [p for p, n in full.judging.per_prompt.items() if "temporal_flickering" in n]
    assert all("static_filter" in full.judging.per_prompt[p] for p in flickering)
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
    monkeypatch.setattr("harness.judged.filters_static", lambda suite: True)
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


def test_other_weights_are_other_scores(place: Path) -> None:
    write_weights("imaging_quality")
    run(place, metrics=("imaging_quality",))
    for path in weights.folder().rglob("*.pth"):
        path.write_text("other weights")
    run(place, metrics=("imaging_quality",))
    assert len(set(keys(place / "judge"))) == 12


def test_values_that_no_row_has_are_explained_under_the_table(place: Path) -> None:
    write_weights("motion_smoothness")
    reason = {"motion_smoothness": "has 2 frames, needs 3"}
    write_judge(place / "judge", place / "VBench_full_info.json", unscorable=reason)
    found = run(place, metrics=("motion_smoothness",))
    lines = footer(build_table(found))
    assert lines.count("motion_smoothness error: has 2 frames, needs 3") == 1


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
    assert any("no longer works" in text for text in quiet.plan.judging.remarks)
    asked = resolve(ExperimentFile(), flags(place, metrics=("vbench-8",)))
    with pytest.raises(Exception, match="no longer works"):
        prepare(asked, Store())


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

    monkeypatch.setattr("harness.distance._features", features_of)
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
        "harness.distance._features", lambda store, wanted, key: [] if key == "own 3" else [1.0]
    )
    lost = fvd_to_reference(dataclasses.replace(toy, task=many), Store())
    assert (lost["value"], lost["detail"]) == (None, "999 of 1000 clips have features")
