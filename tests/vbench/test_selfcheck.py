"""The comparison of the official way and ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harness.errors import HarnessError, UsageError
from harness.generate.video import read
from harness.vbench import environment, selfcheck
from harness.vbench.dimensions import DIMENSIONS
from harness.vbench.synthetic import FRAMES, SIZES, ask, synthetic_clip

if TYPE_CHECKING:
    from collections.abc import Iterable


def watched(*events: dict[str, Any]) -> selfcheck.Watched:
    """What a process said, a second apart."""
    made = selfcheck.Watched()
    for event in events:
        made.hear(event, 1.0)
    return made


def scored(dimension: str, *values: float) -> list[dict[str, Any]]:
    """Scores of one dimension."""
    return [
        {"event": "score", "dimension": dimension, "key": f"{dimension}/{i}", "value": value}
        for i, value in enumerate(values)
    ]


def interpreter(folder: Path, events: Iterable[dict[str, Any]], *, code: int = 0) -> Path:
    """A program that answers every job with these events."""
    said = folder / "said.txt"
    said.write_text("".join(json.dumps(e) + "\n" for e in events), encoding="utf-8")
    path = folder / "python"
    path.write_text(f"#!/bin/sh\necho cause >&2\ncat '{said}'\nexit {code}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def environment_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> environment.Environment:
    """A scoring environment without a detector."""
    full_info = tmp_path / "list.json"
    entry = {"prompt_en": "A person is knitting", "dimension": list(DIMENSIONS)}
    full_info.write_text(json.dumps([entry]), encoding="utf-8")
    found = environment.Environment(
        python=tmp_path / "python",
        versions={"vbench": "0.1.5"},
        full_info=full_info,
        full_info_sha256="",
        cuda=False,
        problems=(),
    )
    monkeypatch.setattr(environment, "find", lambda python: found)
    return found


def run_with(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    official: selfcheck.Watched,
    ours: selfcheck.Watched,
) -> int:
    """The whole check of temporal_flickering, with the answers of the two processes given."""
    answers = {selfcheck.OURS: ours, selfcheck.OFFICIAL: official}
    monkeypatch.setattr(selfcheck, "watch", lambda python, folder, job: answers[job["scorer"]])
    return selfcheck.run(weights=tmp_path, clips=1, dimensions=["temporal_flickering"])


def test_only_what_can_be_scored_here_is_compared_and_each_other_one_says_why(
    tmp_path: Path,
) -> None:
    chosen, left_out = selfcheck.choose(DIMENSIONS, tmp_path, detector=False)

    assert chosen == ["temporal_flickering"]
    assert len(left_out) == len(DIMENSIONS) - 1
    assert any("harness fetch vbench-weights --dimension scene" in line for line in left_out)
    assert sum("detectron2" in line for line in left_out) == 3
    assert any(line.startswith("color: the official function divides") for line in left_out)


def test_an_unknown_dimension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dimension 'scenery' is unknown"):
        selfcheck.choose(["scenery"], tmp_path, detector=False)


def test_equal_values_are_equal_and_the_largest_difference_is_shown() -> None:
    official = watched(*scored("scene", 0.5, 0.25))
    same = selfcheck.compare("scene", official, watched(*scored("scene", 0.5, 0.25)))
    other = selfcheck.compare("scene", official, watched(*scored("scene", 0.5, 0.3)))

    assert same.difference == 0
    assert " yes " in same.line
    assert other.difference == pytest.approx(0.05)
    assert " no " in other.line
    assert "0.05" in other.line


@pytest.mark.parametrize(
    "ours",
    [
        scored("scene", 0.5),
        [],
        [{"event": "unscorable", "dimension": "scene", "key": "scene/0", "reason": "short"}],
    ],
)
def test_a_value_without_a_partner_is_no_equality(ours: list[dict[str, Any]]) -> None:
    row = selfcheck.compare("scene", watched(*scored("scene", 0.5, 0.25)), watched(*ours))
    assert row.difference is None
    assert " no " in row.line


def test_clips_that_neither_way_can_score_are_equal() -> None:
    said = {"event": "unscorable", "dimension": "scene", "key": "scene/0", "reason": "short"}
    assert selfcheck.compare("scene", watched(said), watched(said)).difference == 0


def test_seconds_go_to_the_dimension_that_was_answered_and_the_rest_apart() -> None:
    made = watched(
        {"event": "progress"}, *scored("scene", 0.5, 0.25), *scored("color", 1.0), {"event": "done"}
    )
    assert made.seconds == {selfcheck.REST: 2.0, "scene": 2.0, "color": 1.0}
    assert made.total_s == 5


def test_the_check_is_passed_where_all_values_are_equal(
    environment_here: environment.Environment,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = watched(*scored("temporal_flickering", 0.9))
    two = watched(*scored("temporal_flickering", 0.9))
    assert run_with(monkeypatch, tmp_path, one, two) == 0
    assert "temporal_flickering      yes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ours", "code"),
    [
        (scored("temporal_flickering", 0.8), 1),
        ([{"event": "trouble", "dimension": "temporal_flickering", "status": "error"}], 1),
        ([{"event": "trouble", "dimension": "temporal_flickering", "status": "unsupported"}], 0),
    ],
)
def test_another_value_or_a_failure_is_no_pass(
    environment_here: environment.Environment,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    ours: list[dict[str, Any]],
    code: int,
) -> None:
    one = watched(*scored("temporal_flickering", 0.9))
    two = watched(*({"detail": "why", **event} for event in ours))
    assert run_with(monkeypatch, tmp_path, one, two) == code


def test_without_a_scoring_environment_the_command_that_builds_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "find", lambda python: None)
    with pytest.raises(HarnessError, match="harness fetch vbench"):
        selfcheck.run()


@pytest.mark.usefixtures("environment_here")
def test_a_check_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="nothing can be scored"):
        selfcheck.run(weights=tmp_path, dimensions=["scene"])


def test_answers_of_a_process_are_read_to_the_end(tmp_path: Path) -> None:
    events = [{"event": "progress"}, *scored("scene", 0.5), {"event": "counts"}, {"event": "done"}]
    python = interpreter(tmp_path, events)
    made = selfcheck.watch(python, tmp_path, {"scorer": "shared"})
    assert made.values == {"scene": {"scene/0": 0.5}}
    assert made.processor_s >= 0


@pytest.mark.parametrize(
    ("events", "code", "says"),
    [
        ([{"event": "failed", "detail": "no device"}], 1, "no device"),
        (scored("scene", 0.5), 0, "cause"),
        ([], 3, "cause"),
    ],
)
def test_a_process_that_breaks_off_is_an_error_with_its_last_word(
    tmp_path: Path, events: list[dict[str, Any]], code: int, says: str
) -> None:
    python = interpreter(tmp_path, events, code=code)
    with pytest.raises(HarnessError) as raised:
        selfcheck.watch(python, tmp_path, {"scorer": "shared"})
    assert says in str(raised.value.hint)
    assert f"ended with {code}" in raised.value.message


def test_each_clip_is_asked_with_the_entries_of_the_installed_list(
    environment_here: environment.Environment, tmp_path: Path
) -> None:
    (tmp_path / "clips").mkdir()
    jobs = ask(tmp_path / "clips", ["scene"], 2, environment_here.full_info)
    assert [j["prompt"] for j in jobs] == ["A person is knitting"] * 2
    assert len({w["key"] for j in jobs for w in j["wants"]}) == 2
    height, width = SIZES[0]
    assert read(Path(jobs[0]["path"])).shape == (FRAMES, height, width, 3)


def test_synthetic_clips_move_differ_and_repeat() -> None:
    clip = synthetic_clip(0)
    assert np.array_equal(clip, synthetic_clip(0))
    assert not np.array_equal(clip, synthetic_clip(1))
    assert np.abs(np.diff(clip.astype(int), axis=0)).mean() > 1


def test_the_weight_free_dimension_is_equal_both_ways(
    scoring_python: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = selfcheck.run(
        python=str(scoring_python), weights=tmp_path, clips=2, dimensions=["temporal_flickering"]
    )
    assert code == 0
    assert "temporal_flickering      yes             0" in capsys.readouterr().out
