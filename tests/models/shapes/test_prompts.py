"""The prompt files of the bundled model are what the script writes, balanced and disjoint."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from harness.models.shapes.prompts import files
from harness.models.shapes.world import is_held_out, parse_caption

ROOT = Path(__file__).parents[3]


def rows(name: str) -> list[dict[str, object]]:
    text = (ROOT / "prompts" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_files_are_what_the_script_writes() -> None:
    for name, content in files().items():
        assert (ROOT / "prompts" / name).read_text(encoding="utf-8") == content


def test_evaluation_prompts_are_held_out_and_calibration_prompts_are_not() -> None:
    evaluation = [parse_caption(str(r["text"])) for r in rows("shapes-eval.jsonl")]
    calibration = [parse_caption(str(r["text"])) for r in rows("shapes-calib.jsonl")]
    assert len(set(evaluation)) == 128
    assert len(set(calibration)) == 64
    assert all(is_held_out(a) for a in evaluation)
    assert not any(is_held_out(a) for a in calibration)
    assert set(evaluation).isdisjoint(calibration)


@pytest.mark.parametrize("name", ["shapes-eval.jsonl", "shapes-calib.jsonl"])
def test_tags_say_what_the_text_says(name: str) -> None:
    for row in rows(name):
        assert row["tags"] == parse_caption(str(row["text"])).as_dict()


@pytest.mark.parametrize("name", ["shapes-eval.jsonl", "shapes-calib.jsonl"])
@pytest.mark.parametrize("count", [16, 32, 64])
def test_every_beginning_is_balanced(name: str, count: int) -> None:
    asked = [parse_caption(str(row["text"])).as_dict() for row in rows(name)[:count]]
    for attribute, values in (("shape", 4), ("colour", 8), ("background", 4), ("motion", 8)):
        seen = Counter(a[attribute] for a in asked)
        assert len(seen) == values
        assert max(seen.values()) - min(seen.values()) <= 2
