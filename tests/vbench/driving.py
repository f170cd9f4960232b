"""Start the scoring interpreter: our worker, or a script beside the tests."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.vbench.interpreter import WORKER, worker_environment

if TYPE_CHECKING:
    from pathlib import Path

LIMIT_S = 280


def run_script(python: Path, script: Path, *arguments: Path | str) -> str:
    """Run a script there; returns what it printed."""
    return _run([str(python), "-P", str(script), *map(str, arguments)]).stdout


def _run(command: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        env={**worker_environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def ask_worker(python: Path, *arguments: str) -> list[dict[str, Any]]:
    """The JSON lines that the worker answers a command line with."""
    done = _run([str(python), *WORKER, *arguments])
    return [json.loads(line) for line in done.stdout.splitlines()]


def clip_job(
    name: str,
    path: Path,
    dimensions: list[str],
    *,
    prompt: str | None = None,
    index: int = 0,
    auxiliary: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One clip of a job; its keys are ``name/dimension``."""
    wants = [
        {"dimension": d, "key": f"{name}/{d}", "auxiliary": (auxiliary or {}).get(d)}
        for d in dimensions
    ]
    text = name if prompt is None else prompt
    return {"id": name, "path": str(path), "prompt": text, "index": index, "wants": wants}


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the worker said."""

    events: list[dict[str, Any]]
    folder: Path | None = None

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [e for e in self.events if e["event"] == event]

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """The scores by key."""
        return {e["key"]: e for e in self.of("score")}

    def value(self, key: str) -> float:
        """One score."""
        return float(self.scores[key]["value"])

    @property
    def counts(self) -> dict[str, Any]:
        """How much work it was."""
        return self.of("counts")[0]


def job_of(folder: Path, weights: Path, clips: list[dict[str, Any]]) -> dict[str, Any]:
    """A job for the CPU, with this process as its parent."""
    return {
        "schema": 1,
        "scorer": "shared",
        "device": "cpu",
        "threads": 1,
        "precision": "float32",
        "batch": 1,
        "weights": str(weights),
        "scratch": str(folder / "scratch"),
        "parent": os.getpid(),
        "clips": clips,
    }


def score(
    python: Path,
    folder: Path,
    weights: Path,
    clips: list[dict[str, Any]],
    *,
    code: int = 0,
    **changes: Any,
) -> Answer:
    """Have the worker score clips on the CPU, in a new folder."""
    folder.mkdir()
    job = job_of(folder, weights, clips)
    path = folder / "job.json"
    path.write_text(json.dumps(job | changes), encoding="utf-8")
    done = _run([str(python), *WORKER, str(path)], code)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return Answer(events=events, folder=folder)
