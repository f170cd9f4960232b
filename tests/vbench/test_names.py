from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.errors import HarnessError
from harness.vbench.names import NamedClip, link_folder, merges_case, official_name

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


def _clip(folder: Path, name: str, prompt: str, index: int = 0) -> NamedClip:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(name)
    return NamedClip(path=folder / name, prompt=prompt, index=index)


def test_links_lead_to_the_clips_and_nothing_else_lies_beside_them(tmp_path: Path) -> None:
    clips = [_clip(tmp_path / "clips", f"{i}.mp4", "a cat", i) for i in range(3)]
    (folder,) = link_folder(clips, tmp_path / "links")
    found = {link.name: link.read_text() for link in folder.iterdir()}
    assert found == {f"a cat-{i}.mp4": f"{i}.mp4" for i in range(3)}
    assert [path.name for path in (tmp_path / "links").iterdir()] == [folder.name]


def test_links_made_again_lead_to_the_new_clips(tmp_path: Path) -> None:
    link_folder([_clip(tmp_path / "clips", "old.mp4", "a cat")], tmp_path / "links")
    (folder,) = link_folder([_clip(tmp_path / "clips", "new.mp4", "a cat")], tmp_path / "links")
    assert [link.read_text() for link in folder.iterdir()] == ["new.mp4"]


def test_prompts_that_differ_in_case_get_a_folder_each_where_names_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [
        _clip(tmp_path / "clips", f"{i}.mp4", text)
        for i, text in enumerate(["A lake", "a lake", "a hill", "A LAKE"])
    ]
    monkeypatch.setattr("harness.vbench.names.merges_case", lambda _: True)
    folders = link_folder(clips, tmp_path / "links")
    assert [sorted(link.name for link in folder.iterdir()) for folder in folders] == [
        ["A lake-0.mp4", "a hill-0.mp4"],
        ["a lake-0.mp4"],
        ["A LAKE-0.mp4"],
    ]


def test_a_prompt_that_is_listed_twice_has_one_link(tmp_path: Path) -> None:
    first = _clip(tmp_path / "clips", "0.mp4", "a lake")
    copy = NamedClip(path=tmp_path / "copy.mp4", prompt="a lake", index=0)
    copy.path.write_bytes(first.path.read_bytes())
    (folder,) = link_folder([first, first, copy], tmp_path / "links")
    assert len(list(folder.iterdir())) == 1


def test_two_different_clips_of_one_name_are_refused(tmp_path: Path) -> None:
    clips = [_clip(tmp_path / "clips", f"{i}.mp4", "a lake") for i in range(2)]
    with pytest.raises(HarnessError, match="two different clips claim the name"):
        link_folder(clips, tmp_path / "links")


def test_whether_names_merge_is_tried_on_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "probe").write_text("")
    assert merges_case(tmp_path) == (tmp_path / "PROBE").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["probe"]
