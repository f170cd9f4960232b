from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from harness.cli.main import cli
from harness.models import offload
from harness.run.alive import Pulse
from harness.spec import GenSpec, ModelSpec, Prompt
from harness.store.keys import Keyed
from harness.store.store import Store
from harness.task import Job, PoolTask

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_a_run_with_offload_makes_the_clips_of_one_without(
    tmp_path: Path, tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    clips = {}
    for name in (offload.NONE, offload.BLOCKS):
        monkeypatch.setenv("HARNESS_HOME", str(tmp_path / name))
        (tmp_path / "p.txt").write_text("a red circle\n")
        (tmp_path / "c.toml").write_text(
            "[execution]\nmeasure = false\n[calibration]\nprompts = 1\n[gen]\nsteps = 2\n"
        )
        arguments = ["run", "--model", str(tiny_pipeline_folder), "--methods", "gptq",
                     "--suite", str(tmp_path / "p.txt"), "--no-baselines", "--offload", name,
                     "--config", str(tmp_path / "c.toml"), "--out", str(tmp_path / f"run-{name}"),
                     "--device", "cpu", "--kernels", "off"]  # fmt: skip
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, done.output
        store = Store()
        clips[name] = {
            json.loads(path.read_text())["key"]: sorted(
                (p.name, p.read_bytes()) for p in path.parent.glob("*.safetensors")
            )
            for path in store.root.glob("clip/*/*/manifest.json")
        }
    assert clips[offload.NONE] == clips[offload.BLOCKS]
    assert len(clips[offload.NONE]) == 2


def test_a_worker_opens_what_its_job_says_and_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import harness.models.load as loading
    from harness.generate import networks
    from harness.run import worker

    placed: list[tuple[str, str]] = []

    class _Placed(Exception):
        pass

    def place(pipeline: object, *, device: str, offload: str) -> None:
        del pipeline
        placed.append((device, offload))
        raise _Placed

    def load(spec: object, *, device: str, **_: object) -> None:
        del spec
        placed.append((device, "loaded"))

    monkeypatch.setattr(worker, "_prepare_torch", lambda job: None)
    monkeypatch.setattr(loading, "load_pipeline", load)
    monkeypatch.setattr(networks, "place_", place)
    gen = GenSpec(height=8, width=8, frames=1, fps=1, steps=1, guidance=1.0)
    task = PoolTask(
        id="pool",
        model=ModelSpec(name="m", repo=str(tmp_path), family="cogvideox", gen=gen),
        gen=gen,
        prompts=(Prompt(id="a", text="a"),),
        seed=0,
        pool=Keyed.of("pool", {"a": 1}),
    )
    job = Job(task=task, store=tmp_path / "s", device="cpu", threads=1, parent=0, offload="blocks")
    with pytest.raises(_Placed):
        events = worker.Events(out=io.StringIO())
        worker.run_job(Job.from_json(job.to_json()), events, Pulse(lambda: None))
    assert placed == [("cpu", "loaded"), ("cpu", "blocks")]
