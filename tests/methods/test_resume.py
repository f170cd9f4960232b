"""A calibration that is ended anywhere and begun again leaves what an undisturbed one leaves."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from harness.artifact.quantize import quantize
from harness.bits import BitSpec
from harness.plan.registry import load_method
from harness.quant.calibration.finished import FinishedBlocks
from harness.store.kept import Kept
from harness.testing.conformance import GENS, make_bench

if TYPE_CHECKING:
    from pathlib import Path

    from harness.testing.conformance import Bench

QUICK = {"samples": 4, "timesteps": 2}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "s2q": ("w4a6", {"samples": 4, "epochs": 1}),
    "flatquant": ("w4a6", {"samples": 4, "epochs": 1, "inputs": "quantized"}),
    "ptq4dit": ("w4a6", {**QUICK, "iterations": 4}),
    "svdquant": ("w4a4", {**QUICK, "points": 3, "rank": 4, "tokens": 64}),
    "viditq": ("w4a6", {**QUICK, "mixed": "metric-decoupled", "sensitivity_samples": 1}),
    "qvlm": ("w4a6", {**QUICK, "search_samples": 2, "activations": "static"}),
    "qdit": (
        "w4a6",
        {**QUICK, "search": True, "population": 3, "parents": 2, "mutations": 1, "crossovers": 1,
         "rounds": 1, "search_samples": 2, "sizes": [8, 16]},
    ),
    "qvdit": ("w4a6", {**QUICK, "iterations": 3, "batch": 1}),
    "dvdquant": ("w4a6", {"probes": 2}),
    "rtn-gptq": ("w4a6", {"samples": 4}),
    "gptq": ("w4a6", QUICK),
    "awq": ("w4a16", QUICK),
    "smoothquant": ("w8a8", {**QUICK, "tokens": 64}),
    "quarot": ("w4a6", QUICK),
}  # fmt: skip


class Ended(BaseException):
    """Stands for a kill: nothing catches it."""


class Countdown:
    """Ends a calibration at its n-th write, before the write or behind it."""

    def __init__(self, left: int, *, behind: bool) -> None:
        self.left, self.behind = left, behind

    def __call__(self, write: Any) -> Any:
        def writing(*args: Any, **more: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.behind:
                raise Ended
            found = write(*args, **more)
            if self.left == 0:
                raise Ended
            return found

        return writing


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench("cogvideox", tmp_path_factory.mktemp("bench"))


def calibrate(bench: Bench, name: str, out: Path, kept: Path | None, family: str) -> Path:
    """One attempt, as a worker makes it."""
    bits, options = METHODS[name]
    out.mkdir(parents=True)
    copied = copy.copy(bench.pipeline)
    copied.register_modules(transformer=copy.deepcopy(bench.pipeline.transformer))
    quantize(
        copied, load_method(name), bits=BitSpec.parse(bits), options=options, family=family,
        gen=GENS[family], pool=bench.pool.folder, seed=0, out=out,
        progress=lambda f, t: None, kept=kept,
    )  # fmt: skip
    return out


def content(out: Path) -> dict[str, Any]:
    """Artifact as bytes, report but for what a clock or the memory says, names of the figures."""
    report = json.loads((out / "report.json").read_text())
    for measured in ("seconds", "peak_bytes"):
        del report[measured]
    return {
        "weights": (out / "weights.safetensors").read_bytes(),
        "artifact": (out / "artifact.json").read_text(),
        "report": report,
        "figures": sorted(p.name for p in (out / "figures").iterdir()),
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_calibration_ended_at_each_of_its_writes_comes_to_the_same_artifact(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("methods.qvdit.checkpoint.EVERY_S", 0.0)
    undisturbed = content(calibrate(bench, name, tmp_path / "whole", None, "cogvideox"))
    kept = tmp_path / "kept"
    kept.mkdir()
    ended = 0
    while True:
        with monkeypatch.context() as patch:
            # every attempt gets one part further: before it is written, then behind it
            countdown = Countdown(1, behind=ended % 2 == 1)
            patch.setattr(FinishedBlocks, "commit", countdown(FinishedBlocks.commit))
            patch.setattr(Kept, "save", countdown(Kept.save))
            try:
                out = calibrate(bench, name, tmp_path / f"attempt-{ended}", kept, "cogvideox")
                break
            except Ended:
                ended += 1
        assert ended < 80, "no attempt gets further"
    assert ended >= 4  # two blocks, each before and behind
    assert content(out) == undisturbed
