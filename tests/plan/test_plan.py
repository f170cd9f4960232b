from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from harness.errors import HarnessError, UsageError
from harness.generate.generate import LATENTS_FILE, LOSSLESS_FILE
from harness.models.table import folder_revision, model_spec, transformer_parameters
from harness.plan.estimate import estimate, plan_line
from harness.plan.experiment import Flags, resolve
from harness.plan.experiment_file import ExperimentFile
from harness.plan.plan import Plan, make_plan, plan_measuring
from harness.store.provenance import find_device
from harness.store.store import Store
from tests.doubles import PARAMETERS, write_model_folder

if TYPE_CHECKING:
    from pathlib import Path

TOY, CALIBRATED = "tests.doubles:Toy", "tests.doubles:Calibrated"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    write_model_folder(tmp_path / "model")
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "c.txt").write_text("four\nfive\n")
    return tmp_path


def plan(place: Path, file: dict[str, object] | None = None, **flags: object) -> Plan:
    given: dict[str, object] = {
        "models": (str(place / "model"),),
        "suite": str(place / "p.txt"),
        "baselines": False,
        **flags,
    }
    content = {"calibration": {"suite": str(place / "c.txt")}, **(file or {})}
    experiment = resolve(ExperimentFile.model_validate(content), Flags(**given))  # type: ignore[arg-type]
    return make_plan(experiment, Store())


def test_the_control_row_shares_no_clip_with_the_reference(place: Path) -> None:
    fp, control = plan(place, methods=("control",)).cells
    assert not {c.clip.key for c in fp.task.clips} & {c.clip.key for c in control.task.clips}
    assert [c.noise_seed for c in fp.task.clips] == [c.noise_seed for c in control.task.clips]
    assert [c.reference for c in control.task.clips] == [c.clip.key for c in fp.task.clips]
    assert {c.reference for c in fp.task.clips} == {""}


def test_reference_rows_appear_once_whatever_the_widths(place: Path) -> None:
    cells = plan(place, methods=(TOY, "control"), bits=("w4a6", "w4a4")).cells
    assert [c.cell.bits for c in cells] == ["fp", "w4a6", "w4a4", "fp"]


def test_trajectories_are_recorded_once_for_each_calibration_seed(place: Path) -> None:
    rows = [{"name": CALIBRATED, "label": "a", "calibration_seeds": [0, 1]}]
    rows += [{"name": CALIBRATED, "label": "b", "options": {"rounds": 9}}]  # type: ignore[dict-item]
    found = plan(place, {"method": rows}, bits=("w4a6", "w8a8"))
    assert sorted(found.pools) == ["pool--model--0", "pool--model--1"]
    keys = [c.task.artifact.key for c in found.cells if c.task.artifact]
    assert len(set(keys)) == len(keys) == 6


def test_a_data_free_method_waits_for_no_trajectories(place: Path) -> None:
    found = plan(place, methods=(TOY,))
    assert found.pools == {}
    assert found.calibration is None
    assert found.cells[1].task.pool == ""


def test_the_run_id_follows_the_experiment_and_not_how_the_work_is_spread(place: Path) -> None:
    same = plan(place, methods=(TOY,)).run
    assert plan(place, methods=(TOY,), jobs=7, out=place / "x").run == same
    assert plan(place, methods=(TOY,), bits=("w8a8",)).run != same
    assert plan(place, methods=(TOY,), limit=2).run != same
    assert plan(place, {"execution": {"threads": 2}}, methods=(TOY,)).run != same
    (place / "p.txt").write_text("one\ntwo\nfour and more\n")
    assert plan(place, methods=(TOY,)).run != same


def test_a_changed_weight_is_another_model_and_a_note_beside_it_is_not(place: Path) -> None:
    before = folder_revision(place / "model")
    (place / "model" / "README.md").write_text("a note")
    assert folder_revision(place / "model") == before
    (place / "model" / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"other")
    assert folder_revision(place / "model") != before


def test_the_settings_of_a_folder_come_from_its_configurations(place: Path) -> None:
    spec = model_spec(str(place / "model"))
    assert (spec.gen.height, spec.gen.frames, spec.gen.max_text_tokens) == (16, 9, 8)
    assert transformer_parameters(spec) == PARAMETERS


def test_a_folder_of_another_family_is_refused(place: Path) -> None:
    index = place / "model" / "model_index.json"
    index.write_text(index.read_text().replace("CogVideoXTransformer3DModel", "FooTransformer"))
    with pytest.raises(HarnessError, match="'FooTransformer' belongs to no supported family"):
        model_spec(str(place / "model"))
    with pytest.raises(UsageError, match="not in diffusers format"):
        model_spec(str(place))


def test_an_estimate_learns_from_what_was_timed_here(place: Path) -> None:
    first = plan(place, methods=(TOY,))
    assert plan_line(first, estimate(first, Store())).endswith("time unknown until the first clip")
    store = Store()
    for cell in first.cells:
        clip = cell.task.clips[0]
        label = f"{cell.cell.id}/x"
        with store.build("clip", clip.clip.key, clip.clip.inputs, {"label": label}) as folder:
            for name in (LOSSLESS_FILE, LATENTS_FILE):
                (folder / name).write_bytes(b"x")
    artifact = first.cells[1].task.artifact
    assert artifact is not None
    label = first.cells[1].cell.method.label
    with store.build("artifact", artifact.key, artifact.inputs, {"label": label}) as folder:
        (folder / "report.json").write_text("{}")
    second = plan(place, methods=(TOY,))
    assert not second.cells[1].needs_quantizing
    line = plan_line(second, estimate(second, Store()))
    assert line.startswith("2 cells, 4 clips to make, 2 found, about ")
    assert line.endswith(" s")


def test_only_rows_that_ended_well_are_measured_and_another_row_is_another_set(
    place: Path,
) -> None:
    found = plan(place, methods=(TOY, "control"), kernels="off")
    names = {c.cell.id for c in found.cells}
    assert "model--tests.doubles.Toy--w4a6" in names, "a row that is simulated, so not timed"
    whole = plan_measuring(found, found.models[0], names)
    part = plan_measuring(found, found.models[0], {"model--fp--fp"})
    assert whole is not None
    assert part is not None
    assert [row.cell for row in part.rows] == ["model--fp--fp"]
    assert [row.cell for row in whole.rows] == ["model--fp--fp", "model--control--fp"]
    assert whole.measure.key != part.measure.key
    assert plan_measuring(found, found.models[0], set()) is None


def test_what_a_kernel_may_compute_is_timed_and_has_keys_of_its_own(place: Path) -> None:
    simulated, by_kernel = (plan(place, methods=(TOY,), kernels=how) for how in ("off", "auto"))
    toy = "model--tests.doubles.Toy--w4a6"
    timed = plan_measuring(by_kernel, by_kernel.models[0], {"model--fp--fp", toy})
    assert timed is not None
    assert [row.cell for row in timed.rows] == ["model--fp--fp", toy]
    assert timed.kernels == "auto"
    rows = zip(simulated.cells, by_kernel.cells, strict=True)
    alike = {
        one.cell.id: [c.clip.key for c in one.task.clips] == [c.clip.key for c in other.task.clips]
        for one, other in rows
    }
    assert alike == {"model--fp--fp": True, toy: False}
    assert simulated.run != by_kernel.run
    # weights that travel are computed by no kernel: the clips are those of the simulation
    moved = plan(place, methods=(TOY,), kernels="auto", offload="blocks")
    for one, other in zip(simulated.cells, moved.cells, strict=True):
        assert [c.clip.key for c in one.task.clips] == [c.clip.key for c in other.task.clips]
    with pytest.raises(UsageError, match="no installed kernel"):
        plan(place, methods=(TOY,), kernels="cutlass")


def test_a_device_is_found_without_torch() -> None:
    assert find_device("cpu").name
    for wrong in ("gpu", "cuda:x", "mps"):
        with pytest.raises(UsageError, match="is unknown"):
            find_device(wrong)


def test_a_broken_method_of_a_group_is_a_row_with_the_reason_and_by_name_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "no_such_module:X"
    with pytest.raises(HarnessError, match="cannot be imported"):
        plan(place, methods=(broken,))
    group = {"all": (TOY, broken)}
    monkeypatch.setattr("harness.plan.experiment.several", lambda name: group.get(name, ()))
    found = plan(place, methods=("all",), bits=("w4a6", "w3a4"))
    said = {(c.cell.method.name, c.cell.bits): c.unsupported for c in found.cells}
    assert said[TOY, "w4a6"] == ""
    assert said[TOY, "w3a4"] == "toys have two bits or more than three"
    assert "cannot be imported" in said[broken, "w4a6"]


def test_two_models_of_one_name_are_refused(place: Path) -> None:
    write_model_folder(place / "other" / "model")
    both = (str(place / "model"), str(place / "other" / "model"))
    with pytest.raises(UsageError, match="two models have the same name"):
        plan(place, models=both, methods=(TOY,))


def test_gen_overrides_reach_every_key(place: Path) -> None:
    plain = plan(place, methods=(TOY,)).cells[0]
    fewer = plan(place, {"gen": {"steps": 3}}, methods=(TOY,)).cells[0]
    assert fewer.cell.gen == dataclasses.replace(plain.cell.gen, steps=3)
    assert fewer.task.clips[0].clip.key != plain.task.clips[0].clip.key


def test_tiling_makes_other_clips_of_another_cohort_from_the_same_artifact(place: Path) -> None:
    def planned(gen: dict[str, object]) -> Plan:
        return plan(place, {"gen": gen}, methods=(CALIBRATED,))

    small, tiled = planned({}), planned({"vae_tiling": True})
    large = planned({"height": 480, "width": 720, "frames": 49})
    assert [p.gens["model"].vae_tiling for p in (small, tiled, large)] == [False, True, True]
    assert {c.clip.key for c in small.cells[1].task.clips}.isdisjoint(
        c.clip.key for c in tiled.cells[1].task.clips
    )
    assert tiled.cohorts["model"] == {**small.cohorts["model"], "vae tiling": "on"}
    assert small.cohorts["model"]["vae tiling"] == "off"
    for of in (lambda p: p.cells[1].task.artifact, lambda p: p.pools["pool--model--0"].pool):
        assert of(small) == of(tiled)
    assert small.text_keys == tiled.text_keys


def test_every_text_that_a_missing_thing_needs_is_encoded_by_one_task(place: Path) -> None:
    found = plan(place, methods=(CALIBRATED,))
    assert list(found.texts) == ["text--model"]
    assert set(found.texts["text--model"].texts) == {"", "one", "two", "three", "four", "five"}
    keys = found.text_keys["model"]
    pool = found.pools["pool--model--0"]
    assert pool.texts == {text: keys[text].key for text in ("four", "five")}
    assert {c.text for c in found.cells[0].task.clips} == {
        keys[text].key for text in ("one", "two", "three")
    }
    assert {cell.task.text for cell in found.cells} == {keys[""].key}
    estimated = estimate(found, Store())
    assert estimated.work_s["text--model"] > 0


def test_another_length_dtype_or_no_guidance_is_another_encoded_text(place: Path) -> None:
    keys = [
        plan(place, {"gen": gen}, methods=(TOY,)).text_keys["model"]["one"].key
        for gen in ({}, {"guidance": 1}, {"max_text_tokens": 5}, {"dtype": "bfloat16"})
    ]
    assert len(set(keys)) == 4
    same = plan(place, {"gen": {"steps": 3, "guidance": 9.0}}, methods=(TOY,))
    assert same.text_keys["model"]["one"].key == keys[0]


def test_offload_makes_other_measurements_and_no_other_clips(place: Path) -> None:
    none = plan(place, methods=(TOY,), kernels="off")
    blocks = plan(place, methods=(TOY,), kernels="off", offload="blocks")
    keys = [[clip.clip.key for c in p.cells for clip in c.task.clips] for p in (none, blocks)]
    assert keys[0] == keys[1]
    assert none.run != blocks.run
    names = {c.cell.id for c in none.cells}
    measures = [plan_measuring(p, p.models[0], names) for p in (none, blocks)]
    assert measures[0] is not None
    assert measures[1] is not None
    assert measures[0].measure.key != measures[1].measure.key
    assert measures[1].offload == "blocks"
    unmeasured = [
        plan(place, {"execution": {"measure": False}}, methods=(TOY,), kernels="off", offload=o).run
        for o in ("none", "blocks")
    ]
    assert unmeasured[0] == unmeasured[1]
