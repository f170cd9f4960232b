"""What the commands say of kernels: which there are, and how far one is from the simulation."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

import harness
from harness.cli.doctor import doctor
from harness.cli.listing import listing
from harness.cli.main import cli
from harness.errors import HarnessError
from harness.kernels import dispatch
from harness.kernels.registry import GROUP

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POINTS = {
    "exact": "tests.kernels.exact:Exact",
    "gone": "no_such_module:Kernel",
    "int-mm": "harness.kernels.int_mm:IntMM",
}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One kernel that runs anywhere, one of this package, and one whose file is not there."""
    points = [EntryPoint(name, value, GROUP) for name, value in POINTS.items()]
    monkeypatch.setattr("harness.kernels.registry.entry_points", lambda group: points)
    dispatch.inexact.cache_clear()
    yield
    dispatch.inexact.cache_clear()


@pytest.fixture(scope="module")
def artifact(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "rtn"
    pipeline = harness.load_pipeline(str(tiny_pipeline_folder))
    return harness.quantize(pipeline, "rtn", bits="w4a6", out=out).folder


def said(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, list(arguments))
    told = done.exception.message if isinstance(done.exception, HarnessError) else ""
    return done.exit_code, done.output + told


def test_every_kernel_is_listed_with_what_runs_it_or_what_it_lacks() -> None:
    done = CliRunner().invoke(listing, ["kernels"], catch_exceptions=False)
    rows = dict(line.split(maxsplit=1) for line in done.output.splitlines())
    # our own stand before those of others
    assert list(rows) == ["auto", "off", "int-mm", "exact", "gone"]
    assert rows["exact"].startswith("The yardstick; runs on cpu")
    assert rows["gone"].startswith("not here: kernel 'gone' (no_such_module:Kernel) cannot be")
    assert "it is for NVIDIA GPUs" in rows["int-mm"] or "runs on cuda" in rows["int-mm"]


def test_the_doctor_tries_every_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path))
    text = CliRunner().invoke(doctor, [], catch_exceptions=False).output
    assert re.search(r"^ok    kernel exact +int8 lanes on cpu", text, re.MULTILINE)
    assert re.search(r"^--    kernel gone +kernel 'gone'", text, re.MULTILINE)


def test_a_clip_by_a_kernel_is_compared_with_the_simulated_one(
    artifact: Path, tiny_pipeline_folder: Path
) -> None:
    code, text = said(
        "verify", str(artifact), "--model", str(tiny_pipeline_folder), "--bits", "w4a6",
        "--kernels", "exact", "--device", "cpu",
    )  # fmt: skip
    assert code == 0, text
    found = {
        how: (float(psnr), float(error))
        for how, psnr, error in re.findall(
            r"^  by (\S+?)[:,].*?PSNR ([\d.]+) dB, latent error (\S+)$", text, re.MULTILINE
        )
    }
    assert found.keys() == {"kernel", "simulation"}, text
    psnr, error = found["kernel"]
    assert psnr > 30
    assert 0 <= error < 1e-2
    assert found["simulation"][1] > 0  # its inputs were moved


def test_a_row_without_a_kernel_says_why_and_an_unknown_kernel_is_refused(
    artifact: Path, tiny_pipeline_folder: Path
) -> None:
    named = ("verify", str(artifact), "--model", str(tiny_pipeline_folder), "--bits", "w4a6")
    code, text = said(*named, "--kernels", "int-mm", "--device", "cpu")
    assert code == 0
    assert "no kernel computes it: int-mm: it is for NVIDIA GPUs" in text
    code, text = said(*named, "--kernels", "cutlass")
    assert code != 0
    assert "kernels is 'cutlass', which is no installed kernel" in text


def test_a_whole_run_is_not_compared(tmp_path: Path) -> None:
    from tests.report.example import make_run

    make_run(tmp_path)
    code, text = said("verify", str(tmp_path), "--kernels", "auto")
    assert code != 0
    assert "--kernels is for a single artifact" in text
