from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from harness.plan.suites import load_suite
from harness.vbench.aggregate import ClipScore, Flickering, flickering
from harness.vbench.cautions import ClipMaking, cautions
from harness.vbench.suites import load, samples
from tests.vbench import made_list

if TYPE_CHECKING:
    from pathlib import Path

    from harness.spec import PromptSuite

ROW = ClipMaking(label="rtn", fps=8.0, model_fps=8.0, frames=16, encoder="h264 crf 18 yuv420p")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> PromptSuite:
    return load("vbench-full", made_list.write(tmp_path_factory.mktemp("package")))


def _lines(
    suite: PromptSuite,
    *rows: ClipMaking,
    made: dict[str, int] | None = None,
    flicker: Flickering | None = None,
) -> list[str]:
    whole = {p.id: samples(p) for p in suite.prompts}
    return cautions(
        rows, suite=suite, dimensions=["imaging_quality"], made=made or whole, flickering=flicker
    )


def test_the_full_protocol_on_short_clips_needs_no_word(full: PromptSuite) -> None:
    assert _lines(full, ROW, replace(ROW, label="fp")) == []


def test_a_table_without_vbench_is_not_warned_of_it(full: PromptSuite) -> None:
    row = replace(ROW, frames=400, fps=4.0)
    assert cautions([row], suite=full, dimensions=["psnr"], made={}, flickering=None) == []


def test_clips_of_five_seconds_are_for_another_benchmark(full: PromptSuite) -> None:
    (line,) = _lines(full, replace(ROW, frames=40), replace(ROW, label="fp", frames=39))
    assert line.startswith("rtn: clips of 5.0 s")
    assert "VBench-Long" in line


def test_another_rate_than_the_models_is_named_and_an_unknown_one_is_not(full: PromptSuite) -> None:
    rows = [replace(ROW, label=str(i), fps=16.0) for i in range(5)]
    (line,) = _lines(full, *rows, replace(ROW, label="quiet", model_fps=None))
    assert line.startswith("0, 1, 2 and 2 more: clips at 16 fps, the model makes 8")


def test_rows_that_were_encoded_differently_are_named(full: PromptSuite) -> None:
    (line,) = _lines(full, ROW, replace(ROW, label="fp", encoder="libx264rgb crf 0"))
    assert "rtn: h264 crf 18 yuv420p; fp: libx264rgb crf 0" in line


def test_fewer_clips_than_the_protocol_has_are_counted(full: PromptSuite) -> None:
    (line,) = _lines(full, ROW, made=dict.fromkeys((p.id for p in full.prompts), 5))
    assert line.startswith("75 of 946 prompts have fewer clips")
    assert "vb-0000: 5 of 25" in line


def test_unfiltered_flickering_and_missing_static_clips_are_said(full: PromptSuite) -> None:
    scores = [ClipScore(clip="c", prompt="p", sample=0, value=0.5)]
    (line,) = _lines(full, ROW, flicker=flickering(scores, None))
    assert line.startswith("temporal_flickering_unfiltered: ")
    (line,) = _lines(full, ROW, flicker=flickering(scores, {"c": False}))
    assert line == "temporal_flickering: 1 prompts have fewer than 5 static clips, 1 of them none"


def test_what_is_not_the_official_protocol_says_what_it_is(tmp_path: Path) -> None:
    path = made_list.write(tmp_path)
    (line,) = _lines(load("vbench-8", path), ROW)
    assert "as in quantization papers" in line
    (line,) = _lines(load("vbench-subset-20", path), ROW)
    assert "not to be quoted" in line
    (line,) = _lines(load_suite("eval-general"), ROW)
    assert "within this table" in line
