"""What a model is run with is decided from its configs and is the same through every door."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import UsageError
from harness.models import hub, settings, table
from harness.models.admission import PIPELINES
from harness.models.description import describe, describe_loaded
from harness.models.geometry import FACTORS, check_gen
from harness.models.model_files import FolderFiles
from harness.models.request import changed, check_request
from harness.models.settings import TABLE, settle
from harness.models.table import model_spec
from harness.spec import GenSpec
from tests.models.small_folders import KNOWN, edit_json, write_known

NORMAL = {
    "cogvideox-2b": (480, 720, 49, 8, "float16"),
    "cogvideox-5b": (480, 720, 49, 8, "bfloat16"),
    "cogvideox1.5-5b": (768, 1360, 81, 16, "bfloat16"),
    "hunyuanvideo": (720, 1280, 129, 24, "bfloat16"),
    "hunyuanvideo-1.5-480p": (480, 848, 121, 24, "bfloat16"),
    "hunyuanvideo-1.5-720p": (720, 1280, 121, 24, "bfloat16"),
    "wan2.1-1.3b": (480, 832, 81, 16, "bfloat16"),
    "wan2.1-14b": (720, 1280, 81, 16, "bfloat16"),
    "wan2.2-ti2v-5b": (704, 1280, 121, 24, "bfloat16"),
    "wan2.2-a14b": (720, 1280, 81, 16, "bfloat16"),
    "ltx-video": (512, 704, 161, 25, "bfloat16"),
    "latte": (512, 512, 16, 8, "float16"),
}


def shown(gen: GenSpec) -> tuple[object, ...]:
    return gen.height, gen.width, gen.frames, gen.fps, gen.dtype


@pytest.mark.parametrize("name", KNOWN)
def test_a_folder_has_the_settings_of_its_model_and_can_make_such_a_clip(
    tmp_path: Path, name: str
) -> None:
    folder = write_known(tmp_path / "any-name", name)
    assert shown(model_spec(str(folder)).gen) == NORMAL[name]
    description = describe(FolderFiles(folder), name)
    check_gen(description, model_spec(str(folder)).gen)


@pytest.mark.parametrize("name", [name for name in KNOWN if name in hub.HUB])
def test_a_short_name_an_id_and_a_folder_are_run_alike(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_known(tmp_path / "model", name)
    monkeypatch.setattr(table, "lock", lambda _: {"revision": "c" * 40, "at": "now"})
    monkeypatch.setattr(table, "HubFiles", lambda *_: FolderFiles(folder))
    doors = [model_spec(door).gen for door in (name, hub.HUB[name].repo, str(folder))]
    assert doors[0] == doors[1] == doors[2]


@pytest.mark.parametrize("name", KNOWN)
def test_a_loaded_pipeline_is_run_like_its_folder(tmp_path: Path, name: str) -> None:
    folder = write_known(tmp_path / "model", name)
    gen = model_spec(str(folder)).gen
    index = json.loads((folder / "model_index.json").read_text())
    parts = {}
    for part, (_, kind) in ((n, e) for n, e in index.items() if isinstance(e, list)):
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        path = folder / part / file
        config = json.loads(path.read_text()) if path.is_file() else {}
        parts[part] = type(kind, (), {"config": config, "dtype": f"torch.{gen.dtype}"})()
    kind = type(index["_class_name"], (SimpleNamespace,), {})
    ratio = SimpleNamespace(boundary_ratio=index.get("boundary_ratio"))
    loaded = kind(components=parts, transformer=parts["transformer"], config=ratio)
    assert settle(describe_loaded(loaded)).gen == gen  # type: ignore[arg-type]


def test_weights_run_in_the_type_that_they_are_stored_in_and_float32_in_the_recommended_one(
    tmp_path: Path,
) -> None:
    for stored, run in (("BF16", "bfloat16"), ("F16", "float16"), ("F32", "bfloat16")):
        folder = write_known(tmp_path / stored, "cogvideox-5b", stored=stored)
        assert model_spec(str(folder)).gen.dtype == run
    folder = write_known(tmp_path / "2b", "cogvideox-2b", stored="F32")
    assert model_spec(str(folder)).gen.dtype == "float16"
    edit_json(folder, "transformer/config.json", num_layers=2)  # a model that nobody recommends for
    assert model_spec(str(folder)).gen.dtype == "float32"


def test_a_model_that_is_not_known_takes_size_and_frames_from_its_configs(tmp_path: Path) -> None:
    folder = write_known(tmp_path / "tiny", "cogvideox-2b")
    small = {"num_layers": 2, "sample_height": 8, "sample_width": 6, "sample_frames": 9}
    edit_json(folder, "transformer/config.json", **small, max_text_seq_length=8)
    gen = model_spec(str(folder)).gen
    assert (gen.height, gen.width, gen.frames, gen.max_text_tokens) == (64, 48, 9, 8)
    folder = write_known(tmp_path / "latte", "latte")
    edit_json(folder, "transformer/config.json", num_layers=2, sample_size=4, video_length=5)
    gen = model_spec(str(folder)).gen
    assert (gen.height, gen.width, gen.frames) == (32, 32, 5)


def test_the_shift_of_a_converter_is_replaced_and_one_that_was_chosen_stays(tmp_path: Path) -> None:
    folder = write_known(tmp_path / "wan", "wan2.1-14b")
    assert model_spec(str(folder)).gen.flow_shift == 5.0
    edit_json(folder, "scheduler/scheduler_config.json", flow_shift=8.0)
    assert model_spec(str(folder)).gen.flow_shift is None
    assert model_spec(str(write_known(tmp_path / "small", "wan2.1-1.3b"))).gen.flow_shift is None


def test_experts_are_guided_and_shifted_as_their_script_says(tmp_path: Path) -> None:
    folder = write_known(tmp_path / "a14b", "wan2.2-a14b")
    gen = model_spec(str(folder)).gen
    assert (gen.steps, gen.guidance, gen.guidance_2, gen.flow_shift) == (40, 4.0, 3.0, 12.0)
    assert model_spec(str(write_known(tmp_path / "one", "wan2.1-14b"))).gen.guidance_2 is None
    description = describe(FolderFiles(folder), "a14b")
    off = changed(gen, {"guidance": 1.0})
    assert off.guidance_2 is None
    check_request(description, off)
    with pytest.raises(UsageError, match="guidance 1 runs one branch, with both denoisers"):
        check_request(description, changed(gen, {"guidance": 1.0, "guidance_2": 2.0}))
    single = describe(FolderFiles(tmp_path / "one"), "one")
    with pytest.raises(UsageError, match="guidance_2 = 3 is of a second denoiser"):
        check_request(single, gen)


def test_the_negative_prompt_of_the_example_is_the_default_where_there_is_one(
    tmp_path: Path,
) -> None:
    has = {
        name: bool(model_spec(str(write_known(tmp_path / name, name))).gen.negative_prompt)
        for name in KNOWN
    }
    assert {name for name, yes in has.items() if yes} == {
        "wan2.1-1.3b", "wan2.1-14b", "wan2.2-ti2v-5b", "wan2.2-a14b", "ltx-video",
    }  # fmt: skip


def test_the_table_is_whole_and_every_number_has_its_source(tmp_path: Path) -> None:
    assert {row.pipeline for row in TABLE} == set(PIPELINES) == set(FACTORS)
    fields = {f.name for f in dataclasses.fields(GenSpec)}
    for row in TABLE:
        assert row.values.keys() <= fields
        assert all(source for _, source in row.values.values())
        assert bool(row.dtypes) == bool(row.dtype_source)
        assert bool(row.shifts) == bool(row.shift_source)
    last = {row.pipeline: row for row in TABLE}
    assert all(not row.facts and not row.model for row in last.values())
    for name in KNOWN:
        found = settle(describe(FolderFiles(write_known(tmp_path / name, name)), name))
        assert found.sources.keys() == fields
        assert found.model


def test_the_bundled_model_is_run_alike_by_name_and_by_folder() -> None:
    by_name = model_spec("shapes")
    assert model_spec(by_name.repo).gen == by_name.gen


def test_the_page_has_the_settings_of_the_table() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/families.md").read_text()
    for height, width, frames, fps, dtype in NORMAL.values():
        assert f"| {height}x{width}x{frames}, {fps} | {dtype} |" in page


def test_no_row_is_hidden_behind_another(tmp_path: Path) -> None:
    names = [
        settle(describe(FolderFiles(write_known(tmp_path / name, name)), name)).model
        for name in KNOWN
    ]
    assert {row.model for row in settings.TABLE} - {"", "shapes"} == set(names)
