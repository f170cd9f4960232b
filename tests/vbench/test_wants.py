from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.plan.suites import load_suite
from harness.vbench.dimensions import DIMENSIONS, EIGHT, FLOW, STATIC
from harness.vbench.suites import load
from harness.vbench.wants import action_classes, action_label, dimensions_for
from tests.vbench import made_list

if TYPE_CHECKING:
    from pathlib import Path

    from harness.spec import PromptSuite

OFFICIAL_PROMPTS_ONLY = {
    "object_class",
    "multiple_objects",
    "color",
    "spatial_relationship",
    "scene",
    "appearance_style",
}


@pytest.fixture(scope="module")
def full_info(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_list.write(tmp_path_factory.mktemp("package"))


def _own(folder: Path, *prompts: str) -> PromptSuite:
    (folder / "mine.txt").write_text("\n".join(prompts))
    return load_suite(str(folder / "mine.txt"))


def test_the_prompts_of_vbench_are_judged_by_what_they_are_listed_for(full_info: Path) -> None:
    wants = dimensions_for(load("vbench-8", full_info), EIGHT)
    assert {frozenset(names) for names in wants.per_prompt.values()} == {
        frozenset({"imaging_quality", "aesthetic_quality", "overall_consistency"}),
        frozenset({"subject_consistency", "dynamic_degree", "motion_smoothness"}),
        frozenset({"scene", "background_consistency"}),
    }
    assert (wants.refused, wants.partly) == ({}, {})


def test_a_dimension_that_a_suite_of_vbench_has_no_prompts_for_is_refused(full_info: Path) -> None:
    wants = dimensions_for(load("vbench-8", full_info), ["color", "scene"])
    assert set(wants.refused) == {"color"}
    assert "vbench-full" in wants.refused["color"]
    assert sum("scene" in names for names in wants.per_prompt.values()) == 86


def test_only_the_full_suite_filters_its_flickering_clips(full_info: Path) -> None:
    full = dimensions_for(load("vbench-full", full_info), list(DIMENSIONS))
    flickering = [names for names in full.per_prompt.values() if "temporal_flickering" in names]
    assert flickering == [("temporal_flickering", STATIC)] * 75
    assert sum(STATIC in names for names in full.per_prompt.values()) == 75
    subset = dimensions_for(load("vbench-subset-40", full_info), list(DIMENSIONS))
    assert not [names for names in subset.per_prompt.values() if STATIC in names]


def test_flow_is_judged_on_every_prompt_of_any_suite(full_info: Path, tmp_path: Path) -> None:
    for suite in (load("vbench-8", full_info), _own(tmp_path, "a cat")):
        wants = dimensions_for(suite, [FLOW])
        assert set(wants.per_prompt.values()) == {(FLOW,)}


def test_prompts_of_ones_own_are_judged_by_what_the_official_code_allows(tmp_path: Path) -> None:
    suite = _own(tmp_path, "a cat", "a dog")
    wants = dimensions_for(suite, list(DIMENSIONS))
    assert set(wants.refused) == {*OFFICIAL_PROMPTS_ONLY, "human_action"}
    for name in OFFICIAL_PROMPTS_ONLY:
        assert "VBench's own prompts only" in wants.refused[name]
    assert "person is " in wants.refused["human_action"]
    judged = tuple(name for name in DIMENSIONS if name not in wants.refused)
    assert wants.per_prompt == {p.id: judged for p in suite.prompts}
    assert wants.partly == {}


def test_human_action_is_judged_where_a_prompt_names_an_action(tmp_path: Path) -> None:
    suite = _own(tmp_path, "A person is juggling", "a cat", "one person is " + "x" * 250)
    wants = dimensions_for(suite, ["human_action"])
    assert [bool(wants.per_prompt[p.id]) for p in suite.prompts] == [True, False, False]
    assert wants.refused == {}
    assert wants.partly["human_action"].startswith("1 of 3 prompts")


def test_an_action_that_no_class_is_called_could_only_score_0_and_is_refused(
    tmp_path: Path,
) -> None:
    suite = _own(tmp_path, "a person is juggling in a park")
    wants = dimensions_for(suite, ["human_action"], actions=frozenset({"juggling"}))
    assert "'juggling in a park' is none of the 1 actions" in wants.refused["human_action"]
    suite = _own(tmp_path, "a person is juggling")
    wants = dimensions_for(suite, ["human_action"], actions=frozenset({"juggling"}))
    assert wants.per_prompt == {"mine-000": ("human_action",)}


def test_a_name_that_is_too_long_or_has_a_slash_holds_no_action(tmp_path: Path) -> None:
    for text in ("a person is reading/writing", "b" * 260 + " person is reading"):
        wants = dimensions_for(_own(tmp_path, text), ["human_action"])
        assert "cannot be" in wants.refused["human_action"]


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("A person is Riding a Bike", "riding a bike"),
        ("a person is here, the person is juggling", "juggling"),
        ("a person is push-starting", "push"),
        ("a well-known person is juggling", None),
        ("a person is juggling_balls", "juggling"),
        ("a person is ", None),
        ("a man is juggling", None),
    ],
)
def test_the_action_is_read_as_the_official_code_reads_a_file_name(
    prompt: str, label: str | None
) -> None:
    assert action_label(prompt) == label
    if label is not None:
        # the official expression, on a path
        path = f"/somewhere/{prompt}-0.mp4"
        stem = path.split("/")[-1].lower().split("-")[0]
        assert stem.split("person is ")[-1].split("_")[0] == label


def test_classes_are_read_in_lower_case_beside_the_list(tmp_path: Path) -> None:
    folder = tmp_path / "third_party" / "umt"
    folder.mkdir(parents=True)
    (folder / "kinetics_400_categories.txt").write_text("Juggling\t0\nriding a bike\t1\n")
    assert action_classes(tmp_path / "list.json") == {"juggling", "riding a bike"}


def test_wanting_a_dimension_twice_judges_it_once(tmp_path: Path) -> None:
    wants = dimensions_for(_own(tmp_path, "a cat"), ["imaging_quality", FLOW, "imaging_quality"])
    assert wants.per_prompt == {"mine-000": ("imaging_quality", FLOW)}
