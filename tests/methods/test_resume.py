"""A calibration that is ended anywhere and begun again leaves what an undisturbed one leaves."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from harness.artifact.quantize import quantize
from harness.bits import BitSpec
from harness.models.experts import join_experts_
from harness.models.trajectories import record_pool
from harness.plan.registry import load_method
from harness.quant.calibration.finished import FinishedBlocks
from harness.store.kept import Kept
from harness.testing.conformance import GENS, PROMPTS, Bench, make_bench
from harness.testing.miniatures import wan

if TYPE_CHECKING:
    from pathlib import Path

EXPERTS = "wan, two experts"
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


_BENCHES: dict[str, Bench] = {}


@pytest.fixture
def bench(family: str, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    if family not in _BENCHES:
        folder = tmp_path_factory.mktemp("bench")
        _BENCHES[family] = experts(folder) if family == EXPERTS else make_bench(family, folder)
    return _BENCHES[family]


def experts(folder: Path) -> Bench:
    """A bench of two denoisers that take turns."""
    pipeline = wan(experts=2)
    join_experts_(pipeline)
    pool = record_pool(
        pipeline, PROMPTS, GENS["wan"], seed=0, folder=folder, progress=lambda f, t: None
    )
    return Bench(pipeline=pipeline, family="wan", pool=pool, folder=folder)


def calibrate(bench: Bench, name: str, out: Path, kept: Path | None) -> Path:
    """One attempt, as a worker makes it."""
    family = bench.family
    bits, options = METHODS[name]
    out.mkdir(parents=True)
    copied = copy.copy(bench.pipeline)
    denoiser = copy.deepcopy(bench.pipeline.transformer)
    copied.register_modules(transformer=denoiser)
    if getattr(bench.pipeline, "transformer_2", None) is not None:
        copied.register_modules(transformer_2=denoiser)
    quantize(
        copied, load_method(name), bits=BitSpec.parse(bits), options=options, family=family,
        gen=GENS[family], pool=bench.pool.folder, seed=0, out=out,
        progress=lambda f, t: None, kept=kept,
    )  # fmt: skip
    return out


def content(out: Path) -> dict[str, Any]:
    """Artifact as bytes, report but for what a clock or the memory says, names of the figures."""
    report = json.loads((out / "report.json").read_text())
    for measured in ("seconds", "parts", "peak_bytes"):
        del report[measured]
    return {
        "weights": (out / "weights.safetensors").read_bytes(),
        "artifact": (out / "artifact.json").read_text(),
        "report": report,
        "figures": sorted(p.name for p in (out / "figures").iterdir()),
    }


def ended_at_each_write(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> int:
    """Attempts that were ended, until one came through to what an undisturbed one leaves."""
    undisturbed = content(calibrate(bench, name, tmp_path / "whole", None))
    kept = tmp_path / "kept"
    kept.mkdir()
    for ended in range(80):
        with monkeypatch.context() as patch:
            # an attempt is ended before its first write, the next one behind it, and so on: one
            # that did not go on from what is kept would never come through
            countdown = Countdown(1, behind=ended % 2 == 1)
            patch.setattr(FinishedBlocks, "commit", countdown(FinishedBlocks.commit))
            patch.setattr(Kept, "save", countdown(Kept.save))
            try:
                out = calibrate(bench, name, tmp_path / f"attempt-{ended}", kept)
            except Ended:
                continue
        assert content(out) == undisturbed
        return ended
    raise AssertionError("no attempt came through")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("s2q", "cogvideox"),
        ("rtn-gptq", "cogvideox"),
        ("ptq4dit", "hunyuanvideo"),  # streams that change their names, the quantized prefix
        ("svdquant", "cogvideox"),
        ("smoothquant", "wan"),  # scales folded in a table, a generator that goes on
        ("gptq", EXPERTS),
    ],
)
def test_a_calibration_ended_behind_a_block_comes_to_the_same_artifact(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    undisturbed = content(calibrate(bench, name, tmp_path / "whole", None))
    kept = tmp_path / "kept"
    kept.mkdir()
    with monkeypatch.context() as patch:
        ending = Countdown(1, behind=True)
        patch.setattr(FinishedBlocks, "commit", ending(FinishedBlocks.commit))
        with pytest.raises(Ended):
            calibrate(bench, name, tmp_path / "ended", kept)
    with monkeypatch.context() as patch:
        written: list[int] = []
        patch.setattr(FinishedBlocks, "commit", lambda self, index, *_: written.append(index))
        assert content(calibrate(bench, name, tmp_path / "resumed", kept)) == undisturbed
    assert written[0] == 1  # the first block was not made again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family"),
    [
        *((name, "cogvideox") for name in METHODS),
        ("smoothquant", "latte"),
        ("awq", "wan"),
        ("s2q", EXPERTS),
        ("ptq4dit", EXPERTS),
        ("svdquant", EXPERTS),
    ],
)
def test_every_method_goes_on_behind_each_of_its_writes(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("methods.qvdit.checkpoint.EVERY_S", 0.0)
    assert ended_at_each_write(bench, tmp_path, monkeypatch, name) >= 2 * 2


@pytest.mark.parametrize("family", ["cogvideox"])
def test_the_time_of_ended_attempts_counts(bench: Bench, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "clock.json").write_text('{"seconds": 1000.0}')
    out = calibrate(bench, "gptq", tmp_path / "out", kept)
    report = json.loads((out / "report.json").read_text())
    assert 1000 < report["seconds"] < 1000 + 60
