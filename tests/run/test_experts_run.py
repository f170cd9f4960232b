"""A model of two experts goes from its folder to the table, through workers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from harness.cli.main import cli
from harness.models.experts import FIRST, SECOND
from harness.spec import Status
from harness.store.records import load_run
from harness.store.store import Store
from harness.testing.miniatures import wan

if TYPE_CHECKING:
    from pathlib import Path

GEN = (
    "[gen]\nsteps = 4\nframes = 9\nheight = 32\nwidth = 32\nguidance_2 = 2.0\nmax_text_tokens = 8\n"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("offload", "measured"), [("none", "true"), ("components", "false"), ("blocks", "false")]
)
def test_two_experts_go_from_a_folder_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offload: str, measured: str
) -> None:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    wan(experts=2).save_pretrained(tmp_path / "model")
    (tmp_path / "p.txt").write_text("a red circle\n")
    (tmp_path / "c.toml").write_text(
        f"[execution]\nmeasure = {measured}\n[calibration]\nprompts = 1\n{GEN}"
    )
    arguments = ["run", "--methods", "gptq", "--no-baselines", "--device", "cpu"]
    arguments += ["--model", str(tmp_path / "model"), "--suite", str(tmp_path / "p.txt")]
    arguments += ["--config", str(tmp_path / "c.toml"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, [*arguments, "--offload", offload])
    assert done.exit_code == 0, done.output
    told = load_run(tmp_path / "out")
    assert {cell.label: cell.status for cell in told.cells} == {"fp": Status.OK, "gptq": Status.OK}
    (manifest,) = Store().root.glob("artifact/*/*/artifact.json")
    layers = json.loads(manifest.read_text())["layers"]
    assert {name.partition(".")[0] for name in layers} == {FIRST, SECOND}
    assert len(list(Store().root.glob("clip/*/*/manifest.json"))) == 2
