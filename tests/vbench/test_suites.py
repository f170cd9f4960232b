from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from harness.errors import HarnessError, UsageError
from harness.plan.suites import load_suite
from harness.spec import Prompt
from harness.store.keys import file_digest
from harness.vbench.dimensions import DIMENSIONS, EIGHT
from harness.vbench.suites import (
    GROUPS,
    auxiliary,
    dimensions,
    filters_static,
    is_name,
    is_vbench,
    listed,
    load,
    read,
    refuse_limit,
    samples,
    stratified,
)
from tests.vbench import made_list

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def full_info(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_list.write(tmp_path_factory.mktemp("package"))


def test_the_eight_dimensions_have_251_prompts_with_one_clip_each(full_info: Path) -> None:
    suite = load("vbench-8", full_info)
    assert len(suite.prompts) == 93 + 72 + 86 == 251
    assert {samples(p) for p in suite.prompts} == {1}
    count = Counter(name for p in suite.prompts for name in dimensions(p))
    assert set(count) == set(EIGHT)
    assert count["overall_consistency"] == count["aesthetic_quality"] == 93
    assert count["subject_consistency"] == count["motion_smoothness"] == 72
    assert count["scene"] == count["background_consistency"] == 86
    assert not filters_static(suite)


def test_the_full_suite_has_5_clips_a_prompt_and_25_for_flickering(full_info: Path) -> None:
    suite = load("vbench-full", full_info)
    assert len(suite.prompts) == 946
    for prompt in suite.prompts:
        assert samples(prompt) == (25 if "temporal_flickering" in dimensions(prompt) else 5)
    assert {name for p in suite.prompts for name in dimensions(p)} == set(DIMENSIONS)
    assert filters_static(suite)


def test_a_prompt_is_named_by_its_place_in_the_list_never_by_its_text(full_info: Path) -> None:
    for name in ("vbench-8", "vbench-full", "vbench-subset-40"):
        texts = [row["prompt_en"] for row in made_list.rows()]
        for prompt in load(name, full_info).prompts:
            assert prompt.id == f"vb-{texts.index(prompt.text):04d}"


def test_what_a_dimension_asks_of_a_prompt_is_what_the_official_loader_hands_it(
    full_info: Path,
) -> None:
    for prompt in load("vbench-full", full_info).prompts:
        for name in dimensions(prompt):
            assert auxiliary(prompt, name) == made_list.AUXILIARY.get(name)
            assert ("auxiliary" in DIMENSIONS[name].asks) == (name in made_list.AUXILIARY)


def test_a_suite_says_which_list_it_was_read_from(full_info: Path) -> None:
    suite = load("vbench-8", full_info)
    assert suite.source.endswith(file_digest(full_info))
    assert is_vbench(suite)
    assert suite.digest == load("vbench-8", full_info).digest
    assert len({load(n, full_info).digest for n in ("vbench-8", "vbench-full")}) == 2


def test_a_file_named_like_a_suite_is_none(tmp_path: Path) -> None:
    (tmp_path / "vbench-8.txt").write_text("a cat\n")
    suite = load_suite(str(tmp_path / "vbench-8.txt"))
    assert suite.name == "vbench-8"
    assert not is_vbench(suite)


def test_every_subset_has_its_size_and_every_group_in_its_share(full_info: Path) -> None:
    entries = read(full_info)
    for count in range(11, 947):
        chosen = stratified(entries, count)
        assert len({entry.index for entry in chosen}) == len(chosen) == count
        taken = Counter(entry.dimensions for entry in chosen)
        for group, size in GROUPS.items():
            assert max(1, count * size // 946) <= taken[group] <= count * size // 946 + 1
    assert stratified(entries, 946) == entries


def test_a_subset_takes_evenly_spaced_prompts_of_a_group(full_info: Path) -> None:
    entries = read(full_info)
    group = [e.index for e in entries if e.dimensions == ("human_action",)]
    # 100 x 946 / 946 halves: the k-th of 50 out of 100 stands at 2k + 1
    half = [e.index for e in stratified(entries, 473) if e.dimensions == ("human_action",)]
    assert half == [group[2 * k + 1] for k in range(50)]


def test_a_remainder_goes_to_the_larger_and_on_a_tie_to_the_earlier_group(
    full_info: Path,
) -> None:
    taken = Counter(entry.dimensions for entry in stratified(read(full_info), 12))
    # 12 x 100 / 946 = 1.27: the largest remainder after those below 1; both groups of 100 have it
    assert taken[("human_action",)] == 2
    assert taken[("temporal_style",)] == 1


def test_a_subset_has_one_clip_a_prompt_in_the_order_of_the_list(full_info: Path) -> None:
    suite = load("vbench-subset-30", full_info)
    assert {samples(p) for p in suite.prompts} == {1}
    assert [p.id for p in suite.prompts] == sorted(p.id for p in suite.prompts)


@pytest.mark.parametrize("name", ["vbench-subset-10", "vbench-subset-947", "vbench-subset-0"])
def test_a_subset_of_an_impossible_size_says_the_possible_ones(full_info: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be made of") as caught:
        load(name, full_info)
    assert "11" in caught.value.hint
    assert "946" in caught.value.hint


def test_names_are_told_from_others() -> None:
    assert all(map(is_name, ("vbench-8", "vbench-full", "vbench-subset-64")))
    assert not any(map(is_name, ("vbench", "vbench-16", "vbench-subset-x", "vbench-8.txt")))


def test_a_limit_is_refused_with_the_subset_that_does_it() -> None:
    refuse_limit("vbench-8", None)
    refuse_limit("shapes-eval", 3)
    for limit, count in ((64, 64), (3, 11), (5000, 946)):
        with pytest.raises(UsageError, match="sorted by dimension") as caught:
            refuse_limit("vbench-full", limit)
        assert caught.value.hint.endswith(f"--suite vbench-subset-{count}")


def test_another_number_of_prompts_is_another_version(tmp_path: Path) -> None:
    path = made_list.write(tmp_path, made_list.rows()[:-1])
    with pytest.raises(HarnessError, match="83 prompts for spatial_relationship, not 84") as caught:
        load("vbench-8", path)
    assert "harness fetch vbench" in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_a_dimension_moved_to_other_prompts_is_another_version(tmp_path: Path) -> None:
    entries = made_list.rows()
    entries[0]["dimension"].append("motion_smoothness")
    with pytest.raises(HarnessError, match="74 prompts for temporal_flickering, not 75"):
        load("vbench-8", made_list.write(tmp_path, entries))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt_en": ""}, "has no text"),
        ({"prompt_en": 3}, "has no text"),
        ({"dimension": ["beauty"]}, "KeyError: 'beauty'"),
        ({"dimension": ["scene"], "auxiliary_info": {"scene": "quarry"}}, "no auxiliary entry"),
        ({"dimension": ["scene"]}, "KeyError"),
    ],
)
def test_a_list_with_a_strange_entry_is_refused(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    entries = made_list.rows()
    entries[0] |= change
    with pytest.raises(HarnessError, match=reason):
        read(made_list.write(tmp_path, entries))


def test_a_list_that_is_missing_or_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="cannot be read"):
        read(tmp_path / "absent.json")
    (tmp_path / "list.json").write_text("[")
    with pytest.raises(HarnessError, match="cannot be read"):
        read(tmp_path / "list.json")


def test_the_listing_counts_clips_and_is_empty_without_the_package(full_info: Path) -> None:
    rows = dict(listed(full_info))
    assert list(rows) == ["vbench-8", "vbench-full", "vbench-subset-<n>"]
    assert "251 prompts, 251 clips" in rows["vbench-8"]
    assert f"946 prompts, {871 * 5 + 75 * 25} clips" in rows["vbench-full"]
    assert listed(None) == []


def test_prompts_without_tags_have_one_clip_and_no_dimension() -> None:
    prompt = Prompt(id="a", text="a cat")
    assert (samples(prompt), dimensions(prompt), auxiliary(prompt, "scene")) == (1, (), None)


def test_tags_of_ones_own_are_not_taken_for_those_of_vbench(tmp_path: Path) -> None:
    tags = {"samples": "many", "dimensions": "scene", "auxiliary": "{"}
    row = {"id": "a", "text": "a cat", "tags": tags}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    (prompt,) = load_suite(str(tmp_path / "mine.jsonl")).prompts
    assert (samples(prompt), dimensions(prompt), auxiliary(prompt, "scene")) == (1, (), None)
