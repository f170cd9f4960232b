"""Real workers, killed at random moments while they record and calibrate, lose nothing kept."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.plan.experiment import Flags, resolve
from harness.plan.experiment_file import ExperimentFile
from harness.plan.plan import make_plan
from harness.store.store import Store
from harness.store.work import FOLDER
from harness.task import Job, Task

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    "s2q": ("w4a6", {"samples": 4, "epochs": 2}),
    "rtn-gptq": ("w4a6", {"samples": 4}),
    "ptq4dit": ("w4a6", {"samples": 4, "timesteps": 2, "iterations": 8}),
    "svdquant": ("w4a4", {"samples": 4, "timesteps": 2, "points": 3, "rank": 4, "tokens": 64}),
}
KILLS = 2


def tasks(folder: Path, model: Path) -> tuple[Task, Task, list[Task]]:
    """The encoding, the recording, and the quantizing of every row, as a run would plan them."""
    (folder / "prompts.txt").write_text("a red circle")
    (folder / "calib.txt").write_text("a blue square grows\nthe cross rotates\na green star")
    file = ExperimentFile.model_validate(
        {
            "gen": {"height": 32, "width": 32, "frames": 9, "steps": 4, "max_text_tokens": 8},
            "calibration": {"suite": str(folder / "calib.txt")},
            "method": [
                {"name": name, "bits": [bits], "options": options}
                for name, (bits, options) in ROWS.items()
            ],
        }
    )
    flags = Flags(models=(str(model),), suite=str(folder / "prompts.txt"), baselines=False)
    plan = make_plan(resolve(file, flags), Store())
    (texts,), (pool,) = plan.texts.values(), plan.pools.values()
    cells = [c.task for c in plan.cells if c.needs_quantizing]
    return texts, pool, [replace(cell, clips=()) for cell in cells]


def start(task: Task, store: Store, folder: Path) -> subprocess.Popen[bytes]:
    job = Job(task=task, store=store.root, device="cpu", threads=1, parent=os.getpid())
    path = folder / "job.json"
    path.write_text(job.to_json())
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "harness.run.worker", str(path)], stdout=subprocess.DEVNULL
    )


def finish(task: Task, store: Store, folder: Path) -> None:
    assert start(task, store, folder).wait() == 0


def kill_while_it_works(task: Task, store: Store, folder: Path, chance: random.Random) -> bool:
    """Kill a worker once it has kept more than there was, and a little later; False if it ended."""
    work = store.root / FOLDER
    before = kept_in(work)
    process = start(task, store, folder)
    while process.poll() is None and kept_in(work) <= before:
        time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 0.4))
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def kept_in(work: Path) -> int:
    return sum(1 for path in work.rglob("*") if path.name.startswith(("block-", "prompt.json")))


def pool_of(store: Store, key: str) -> dict[str, Any]:
    """Bytes of every file of a pool, times left out."""
    found = store.find("pool", key)
    assert found is not None
    files: dict[str, Any] = {}
    for path in sorted(p for p in found.folder.rglob("*") if p.is_file()):
        name = path.relative_to(found.folder).as_posix()
        if path.suffix != ".json":
            files[name] = path.read_bytes()
        elif path.name != "manifest.json":
            files[name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
    return files


def artifact_of(store: Store, key: str) -> dict[str, Any]:
    found = store.find("artifact", key)
    assert found is not None
    report = found.json("report.json")
    for measured in ("seconds", "parts", "peak_bytes"):
        del report[measured]
    names = ("weights.safetensors", "artifact.json")
    return {name: (found.folder / name).read_bytes() for name in names} | {"report": report}


@pytest.mark.slow
def test_killed_workers_go_on_to_the_bits_of_undisturbed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pipeline_folder: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    chance, stores = random.Random(7), []
    for name in ("undisturbed", "disturbed"):
        monkeypatch.setenv("HARNESS_HOME", str(tmp_path / name))
        stores.append(Store())
    texts, pool, cells = tasks(tmp_path, tiny_pipeline_folder)
    calm, wild = stores
    for task in (texts, pool, *cells):
        finish(task, calm, tmp_path)
    finish(texts, wild, tmp_path)
    kills = 0
    for task in (pool, *cells):
        done = [kill_while_it_works(task, wild, tmp_path, chance) for _ in range(KILLS)]
        kills += sum(done)
        finish(task, wild, tmp_path)
    assert kills >= len(cells) + 1  # a fast machine may be through before the later ones
    assert pool_of(wild, pool.pool.key) == pool_of(calm, pool.pool.key)  # type: ignore[union-attr]
    for cell in cells:
        key = cell.artifact.key  # type: ignore[union-attr]
        assert artifact_of(wild, key) == artifact_of(calm, key)
    assert list((wild.root / FOLDER).iterdir()) == []
