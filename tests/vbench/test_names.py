from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.vbench.names import official_name

if TYPE_CHECKING:
    from pathlib import Path

USUAL = (
    "a cat, sitting",
    "..",
    ".",
    "a \"quoted\" 'word' $(with) `signs` \\ and: more?*",
    "façades of Petra",
    "a cat - 3",
    "ends with a stop.",
    "",
)


@pytest.mark.parametrize("prompt", USUAL)
def test_what_a_file_system_takes_is_the_official_name(tmp_path: Path, prompt: str) -> None:
    found = official_name(prompt, 3)
    assert (found.name, found.exact) == (f"{prompt}-3.mp4", True)
    (tmp_path / found.name).write_text("clip")
    assert [path.name for path in tmp_path.iterdir()] == [found.name]


@pytest.mark.parametrize("prompt", ["a/b", "../../etc", "a\0b", "two\nlines", "x" * 300, "ç" * 130])
def test_what_it_does_not_take_is_changed_and_said_so(tmp_path: Path, prompt: str) -> None:
    found = official_name(prompt, 12)
    assert not found.exact
    assert found.name.endswith("-12.mp4")
    (tmp_path / found.name).write_text("clip")
    assert [path.name for path in tmp_path.iterdir()] == [found.name]


def test_changed_names_of_different_prompts_differ() -> None:
    prompts = ["a/b", "a\0b", "x" * 300, "x" * 301, "ç" * 130, "ç" * 131]
    assert len({official_name(prompt, 0).name for prompt in prompts}) == len(prompts)


def test_the_longest_name_is_not_cut_and_one_byte_more_is() -> None:
    longest = "x" * (255 - len("-0.mp4"))
    assert official_name(longest, 0).exact
    cut = official_name(longest + "x", 0)
    assert not cut.exact
    assert len(cut.name) == 255
    # the number needs room as well
    assert not official_name(longest, 10).exact
