"""The training of the bundled model: it resumes exactly, and the whole command works end to end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from harness.errors import HarnessError
from harness.models.shapes import checkpoint
from harness.models.shapes.loop import Run, learning_rate_factor, step_generator, train_
from harness.models.shapes.muon import orthogonal

ROOT = Path(__file__).parents[3]


def tiny_run(folder: Path, **changes: float) -> Run:
    values = {"steps": 12, "cooldown": 4, "warmup": 2, "save_every_s": 0.0} | changes
    return Run(folder=folder, stage="tiny", **values)  # type: ignore[arg-type]


def train_tiny(run: Run, die_at: int | None = None) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "base_lr": 0.05}], lr=0.05)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if step == die_at:
            raise KeyboardInterrupt
        x = torch.randn(4, 3, generator=step_generator(run, step))
        return model(x).square().mean(), {}

    average, _ = train_(run, model, [optimizer], loss)
    return model, average.shadow


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("die_at", [1, 5, 11])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, die_at: int
) -> None:
    whole, whole_average = train_tiny(tiny_run(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tiny_run(tmp_path / "cut"), die_at)
    resumed, resumed_average = train_tiny(tiny_run(tmp_path / "cut"))
    assert same(whole.state_dict(), resumed.state_dict())
    assert same(whole_average, resumed_average)


def test_a_killed_process_loses_nothing_that_was_published(tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from harness.models.shapes.loop import Run, step_generator, train_\n"
        f"run = Run(folder=Path({str(tmp_path)!r}), stage='tiny', steps=12, cooldown=4, warmup=2,"
        " save_every_s=0.0)\n"
        "torch.manual_seed(0)\n"
        "model = torch.nn.Linear(3, 2)\n"
        "groups = [{'params': list(model.parameters()), 'base_lr': 0.05}]\n"
        "def loss(step):\n"
        "    if step == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    x = torch.randn(4, 3, generator=step_generator(run, step))\n"
        "    return model(x).square().mean(), {}\n"
        "train_(run, model, [torch.optim.AdamW(groups, lr=0.05)], loss)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert killed.returncode == -9
    state = checkpoint.read(tmp_path / "tiny.pt")
    assert state is not None
    assert state["step"] == 7
    resumed, _ = train_tiny(tiny_run(tmp_path))
    whole, _ = train_tiny(tiny_run(tmp_path / "whole"))
    assert same(whole.state_dict(), resumed.state_dict())


def test_minutes_stop_the_call_and_not_the_stage(tmp_path: Path) -> None:
    for calls in range(1, 14):
        train_tiny(tiny_run(tmp_path, minutes=0.0))
        state = checkpoint.read(tmp_path / "tiny.pt")
        assert state is not None
        assert state["step"] == min(calls, 12)
    assert state["finished"]
    whole, _ = train_tiny(tiny_run(tmp_path / "whole"))
    assert same(whole.state_dict(), state["module"])


def test_a_finished_stage_can_be_prolonged(tmp_path: Path) -> None:
    train_tiny(tiny_run(tmp_path, steps=6, cooldown=0))
    prolonged, _ = train_tiny(tiny_run(tmp_path, steps=12, cooldown=0))
    whole, _ = train_tiny(tiny_run(tmp_path / "whole", steps=12, cooldown=0))
    assert same(whole.state_dict(), prolonged.state_dict())


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    run = Run(folder=Path(), stage="x", steps=100, cooldown=20, warmup=10)
    factors = [learning_rate_factor(step, run) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert set(factors[9:81]) == {1.0}
    assert factors[90] == pytest.approx(0.5)
    assert factors[100] == 0.0


def test_a_truncated_checkpoint_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    checkpoint.publish(path, {"step": 1, "weights": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(HarnessError, match="cannot be read") as caught:
        checkpoint.read(path)
    assert "delete it" in caught.value.hint


def test_muon_makes_singular_values_nearly_one() -> None:
    for shape in ((6, 20), (20, 6), (8, 8)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        values = torch.linalg.svdvals(orthogonal(matrix))
        assert values.min() > 0.4
        assert values.max() < 1.4


def test_publishing_leaves_no_partial_file(tmp_path: Path) -> None:
    checkpoint.publish(tmp_path / "a.pt", {"step": 1})
    checkpoint.publish(tmp_path / "a.pt", {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    assert checkpoint.read(tmp_path / "a.pt") == {"step": 2}


@pytest.fixture
def bfloat16_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in float32 on a processor without bfloat16 units: there one step takes minutes."""
    from harness.models.shapes import train_denoiser

    told = Path("/proc/cpuinfo")
    if told.is_file() and not re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", told.read_text()):
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
        monkeypatch.setattr(train_denoiser, "_ExplicitAttention", nullcontext)


@pytest.mark.slow
@pytest.mark.usefixtures("bfloat16_where_it_is_fast")
def test_the_command_makes_a_pipeline_that_diffusers_loads(tmp_path: Path) -> None:
    from harness.models.shapes.evaluate import generate, load_pipeline, machine, round_trip
    from harness.models.shapes.train import main

    for stage, extra in {
        "vae": ["--steps", "1"],
        "text": ["--steps", "2"],
        "latents": ["--clips", "3"],
        "decoder": ["--steps", "1"],
        "refine": ["--steps", "1"],
        "sharpen": ["--steps", "1"],
        "polish": ["--steps", "1"],
        "denoiser": ["--steps", "1"],
        "export": [],
    }.items():
        assert main(["--out", str(tmp_path), "--stage", stage, *extra]) == 0
    pipeline = load_pipeline(tmp_path / "pipeline")
    made = generate(
        pipeline, ["a red square growing on a white background", ""], seed=0, steps=2, guidance=4.0
    )
    again = generate(
        pipeline, ["a red square growing on a white background", ""], seed=0, steps=2, guidance=4.0
    )
    assert made.frames.shape == (2, 17, 64, 64, 3)
    assert np.array_equal(made.frames, again.frames)
    assert round_trip(pipeline.vae, count=1)["n"] == 1
    assert "torch" in machine()
    lines = (tmp_path / "denoiser.log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["step"] == 0
    size = sum(f.stat().st_size for f in (tmp_path / "pipeline").rglob("*") if f.is_file())
    assert size < 40 * 2**20
