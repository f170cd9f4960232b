from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from harness.errors import HarnessError, UsageError
from harness.plan.suites import bundled, load_suite, normalised, refuse_overlap, vbench_rows
from harness.store.keys import file_digest
from harness.vbench.environment import Environment, missing_line
from tests.vbench import made_list

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


ROLES = ("eval", "calibration")


def test_general_calibration_prompts_are_varied_and_hold_no_written_text() -> None:
    prompts = load_suite("calib-general", role="calibration").prompts
    assert len(prompts) == 64 == len({normalised(p.text) for p in prompts})
    assert {dict(p.tags)["motion"] for p in prompts} == {"slow", "fast", "camera"}
    # the first ten are what a run calibrates on unless it asks for more
    assert len({dict(p.tags)["subject"] for p in prompts[:10]}) >= 5
    written = {"text", "sign", "letters", "caption", "subtitle", "logo", "words"}
    assert not [p.id for p in prompts if written & set(normalised(p.text).split())]


def test_general_prompts_for_evaluation_are_none_that_a_method_is_calibrated_on() -> None:
    calibrated, evaluated = (
        load_suite("calib-general", role="calibration"),
        load_suite("eval-general"),
    )
    assert len({normalised(p.text) for p in evaluated.prompts}) == 32
    refuse_overlap(evaluated, calibrated)
    for subject in ("people", "animals", "city", "nature", "object", "food", "vehicle", "fantasy"):
        assert sum(dict(p.tags)["subject"] == subject for p in evaluated.prompts) == 4


def test_every_bundled_suite_has_the_digest_it_states() -> None:
    assert set(bundled()) >= {"shapes-eval", "shapes-calib"}
    for name, row in bundled().items():
        assert load_suite(name, role=row.role).prompts


def test_bundled_evaluation_and_calibration_prompts_are_disjoint() -> None:
    names = {role: [n for n, row in bundled().items() if row.role == role] for role in ROLES}
    assert all(names.values())
    for evaluation in names["eval"]:
        for calibration in names["calibration"]:
            refuse_overlap(load_suite(evaluation), load_suite(calibration, role="calibration"))


def test_the_digest_is_of_the_prompts_that_are_used() -> None:
    whole, part = load_suite("shapes-eval"), load_suite("shapes-eval", limit=3)
    assert part.prompts == whole.prompts[:3]
    assert part.digest != whole.digest


def test_a_changed_bundled_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "a", "text": "one"}) + "\n")
    row = {"name": "a", "file": "a.jsonl", "version": 1, "role": "eval"}
    lines = [f'{key} = "{value}"' for key, value in row.items() if key != "version"]
    text = "\n".join(["[[suite]]", *lines, "version = 1"])
    text += f'\nsha256 = "{file_digest(tmp_path / "a.jsonl")}"\n'
    (tmp_path / "suites.toml").write_text(text)
    assert load_suite("a", folder=tmp_path).prompts[0].text == "one"
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "a", "text": "two"}) + "\n")
    with pytest.raises(HarnessError, match="is not the released one"):
        load_suite("a", folder=tmp_path)


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a cat\n\n  a dog  \n")
    suite = load_suite(str(tmp_path / "mine.txt"))
    assert [(p.id, p.text) for p in suite.prompts] == [("mine-000", "a cat"), ("mine-001", "a dog")]
    assert suite.name == "mine"


@pytest.mark.parametrize("head", ["prompt", "text", "Prompt"])
def test_a_csv_file_has_a_column_of_prompts(tmp_path: Path, head: str) -> None:
    (tmp_path / "mine.csv").write_text(f'id,{head}\nx,"a cat, sitting"\ny,a dog\n')
    suite = load_suite(str(tmp_path / "mine.csv"))
    assert [(p.id, p.text) for p in suite.prompts] == [("x", "a cat, sitting"), ("y", "a dog")]


def test_a_jsonl_file_keeps_ids_and_tags(tmp_path: Path) -> None:
    row = {"id": "q", "text": "a cat", "tags": {"b": "2", "a": "1"}}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    (prompt,) = load_suite(str(tmp_path / "mine.jsonl")).prompts
    assert (prompt.id, prompt.text, prompt.tags) == ("q", "a cat", (("a", "1"), ("b", "2")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n\n", "holds no prompts"),
        ("a.csv", "title\nx\n", "no column"),
        ("a.jsonl", "{not json", "cannot be read"),
        ("a.jsonl", '{"id": "x"}', "KeyError"),
        ("a.jsonl", "[1]", "cannot be read"),
        ("a.jsonl", '{"id":"x","text":"a"}\n{"id":"x","text":"b"}', "the id 'x' twice"),
        ("a.jsonl", '{"id":"../x","text":"a"}', "cannot name a file"),
    ],
)
def test_a_file_without_usable_prompts_says_why(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        load_suite(str(tmp_path / name))


def test_an_unknown_suite_names_the_nearest_and_a_missing_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_suite("shapes-evl")
    assert "did you mean shapes-eval?" in caught.value.hint
    with pytest.raises(UsageError, match="there is no prompt file"):
        load_suite(str(tmp_path / "absent.txt"))


def test_a_suite_of_the_other_role_is_refused() -> None:
    with pytest.raises(UsageError, match="is for calibration, not for eval"):
        load_suite("shapes-calib")


def test_an_overlap_is_found_whatever_case_and_punctuation(tmp_path: Path) -> None:
    (tmp_path / "eval.txt").write_text("a red  Circle.\nb\n")
    (tmp_path / "fit.txt").write_text("A red circle\n")
    assert normalised("A  red, Circle!") == "a red circle"
    with pytest.raises(UsageError, match="shares 1 prompts"):
        refuse_overlap(
            load_suite(str(tmp_path / "eval.txt")),
            load_suite(str(tmp_path / "fit.txt"), role="calibration"),
        )


@pytest.fixture
def scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], list[str | None]]:
    """Pretends that the scoring environment is there, or is not; notes who was asked for."""
    asked: list[str | None] = []
    environment = Environment(
        python=tmp_path / "python",
        versions={},
        full_info=made_list.write(tmp_path),
        full_info_sha256="",
        cuda=False,
        problems=(),
    )

    def pretend(there: bool) -> list[str | None]:
        def find(python: str | None = None) -> Environment | None:
            asked.append(python)
            return environment if there else None

        monkeypatch.setattr("harness.plan.suites.find", find)
        return asked

    return pretend


def test_the_prompts_of_vbench_come_from_the_installed_package(
    scorer: Callable[[bool], list[str | None]],
) -> None:
    asked = scorer(True)
    assert len(load_suite("vbench-8").prompts) == 251
    assert len(load_suite("vbench-subset-20", python="/some/python").prompts) == 20
    assert asked == [None, "/some/python"]


def test_without_the_package_the_error_says_how_to_get_it(
    scorer: Callable[[bool], list[str | None]],
) -> None:
    scorer(False)
    with pytest.raises(HarnessError, match="not installed") as caught:
        load_suite("vbench-full")
    assert caught.value.hint == "harness fetch vbench"
    assert str(caught.value).count("\n") == 1


def test_a_suite_of_vbench_is_neither_cut_nor_calibrated_on(
    scorer: Callable[[bool], list[str | None]],
) -> None:
    asked = scorer(False)
    with pytest.raises(UsageError, match="sorted by dimension") as caught:
        load_suite("vbench-8", limit=20)
    assert "vbench-subset-20" in caught.value.hint
    with pytest.raises(UsageError, match="is for eval, not for calibration") as caught:
        load_suite("vbench-8", role="calibration")
    assert "calib-general" in caught.value.hint
    assert asked == []


def test_the_listing_names_the_suites_of_vbench_with_or_without_it(
    scorer: Callable[[bool], list[str | None]],
) -> None:
    scorer(False)
    names = [name for name, about in vbench_rows() if about == missing_line()]
    scorer(True)
    assert [name for name, _ in vbench_rows()] == names
    assert "251 prompts" in dict(vbench_rows())["vbench-8"]


def test_a_misspelt_suite_of_vbench_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        load_suite("vbench-ful")
    assert "did you mean vbench-full?" in caught.value.hint
