"""Score the same clips by the worker and by the official package, and measure what that takes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.generate.video import write_mp4
from harness.vbench.interpreter import WORKER, worker_environment
from harness.vbench.synthetic import FPS, synthetic_clip
from tests.vbench.driving import Answer, clip_job, job_of

if TYPE_CHECKING:
    from collections.abc import Sequence

SCRIPTS = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """What a process said and took.

    Attributes:
        said: Its stdout.
        seconds: Wall time.
        peak_gb: The most memory that it held.
    """

    said: str
    seconds: float
    peak_gb: float


def run(python: Path, *arguments: object) -> Ran:
    """Run the scoring interpreter for as long as it takes; its errors go to ours."""
    started = time.monotonic()
    process = subprocess.Popen(
        [str(python), *map(str, arguments)],
        env=worker_environment() | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as pipe:
        said = pipe.read()
    # `wait4` is the only way to the memory of one child.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    seconds = time.monotonic() - started
    return Ran(said=said, seconds=seconds, peak_gb=usage.ru_maxrss / 1e6)


def prompts_of(full_info: Path, dimension: str) -> list[dict[str, Any]]:
    """The entries of the installed list for a dimension."""
    entries = json.loads(full_info.read_text(encoding="utf-8"))
    return [e for e in entries if dimension in e["dimension"]]


def write_clips(folder: Path, entries: Sequence[dict[str, Any]]) -> list[Path]:
    """A clip per prompt, under its official name."""
    folder.mkdir()
    paths = [folder / f"{e['prompt_en']}-0.mp4" for e in entries]
    for seed, path in enumerate(paths):
        write_mp4(path, synthetic_clip(seed), fps=FPS)
    return paths


def by_worker(
    python: Path,
    folder: Path,
    clips: Sequence[Path],
    entries: Sequence[dict[str, Any]],
    dimensions: Sequence[str],
    *,
    weights: Path,
    **changes: Any,
) -> tuple[Answer, Ran]:
    """Score by the worker; keys are ``c<number of the clip>/<dimension>``."""
    jobs = [
        clip_job(
            f"c{i}",
            path,
            [d for d in dimensions if d in entry["dimension"]],
            prompt=entry["prompt_en"],
            auxiliary=entry.get("auxiliary_info"),
        )
        for i, (path, entry) in enumerate(zip(clips, entries, strict=True))
    ]
    job = job_of(folder, weights, jobs)
    path = folder / "job.json"
    path.write_text(json.dumps(job | changes), encoding="utf-8")
    ran = run(python, *WORKER, path)
    return Answer(events=[json.loads(line) for line in ran.said.splitlines()]), ran


def officially(
    python: Path,
    folder: Path,
    clips: Sequence[Path],
    entries: Sequence[dict[str, Any]],
    dimensions: Sequence[str],
    *,
    weights: Path,
) -> tuple[dict[str, Any], dict[str, float], Ran]:
    """Values, with the same keys, and aggregate by dimension, of ``VBench(...).evaluate``."""
    listed = folder / "list.json"
    listed.write_text(json.dumps(list(entries)), encoding="utf-8")
    spec = {
        "weights": str(weights),
        "videos": str(clips[0].parent),
        "out": str(folder / "official"),
        "mode": "vbench_standard",
        "full_info": str(listed),
        "dimensions": list(dimensions),
        "no_grad": "scene" in dimensions,
    }
    path = folder / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    ran = run(python, "-P", SCRIPTS / "evaluate.py", path)
    results = json.loads(ran.said.splitlines()[-1])
    names = {clip.name: f"c{i}" for i, clip in enumerate(clips)}
    values = {
        f"{names[name]}/{dimension}": raw
        for dimension, (_, rows) in results.items()
        for name, raw in rows.items()
    }
    return values, {d: aggregate for d, (aggregate, _) in results.items()}, ran
