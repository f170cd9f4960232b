"""A scoring interpreter that keeps to the worker's protocol and computes nothing.

``write_judge`` makes a program that a run takes for a Python with vbench. What it answers depends
on the bytes of the clip and on the dimension, unless the file beside it says otherwise:

    die_after      values after which it kills itself
    trouble        by dimension: status and detail instead of values
    unscorable     by dimension: the reason
    invalid        dimensions whose clips the official code leaves out
    moving         whether the static filter passes no clip
    versions       added to what it says of itself
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

VERSIONS = {"vbench": "0.1.5", "torch": "2.13.0", "detectron2": ""}
_PROGRAM = """#!/bin/sh
if [ "$1" = -c ]; then exec {python} "$@"; fi
shift 3
exec {python} {script} {folder} "$@"
"""


def write_judge(folder: Path, full_info: Path | None = None, **manners: Any) -> Path:
    """Make the program; called again it changes the manners."""
    folder.mkdir(exist_ok=True)
    if full_info is None:
        full_info = folder / "VBench_full_info.json"
        full_info.write_text("[]")
    (folder / "manners.json").write_text(json.dumps({"full_info": str(full_info), **manners}))
    program = folder / "python"
    if not program.exists():
        text = _PROGRAM.format(python=sys.executable, script=Path(__file__), folder=folder)
        program.write_text(text)
        program.chmod(0o755)
    return program


def jobs(folder: Path) -> list[dict[str, Any]]:
    """The jobs it was given, in order, with where and how it ran."""
    path = folder / "jobs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keys(folder: Path) -> list[str]:
    """The keys it was asked for, in order."""
    return [w["key"] for job in jobs(folder) for clip in job["clips"] for w in clip["wants"]]


def value_of(path: str, dimension: str) -> float:
    """What it answers."""
    text = hashlib.sha256(Path(path).read_bytes() + dimension.encode()).hexdigest()
    return int(text[:8], 16) / 2**32


def send(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def judge(folder: Path, job: dict[str, Any], manners: dict[str, Any]) -> None:
    told = {name: os.environ.get(name, "") for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    told |= {name: os.environ.get(name, "") for name in ("VBENCH_CACHE_DIR", "TORCH_HOME")}
    told |= {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", ""), "cwd": str(Path.cwd())}
    with (folder / "jobs.jsonl").open("a") as file:
        file.write(json.dumps({**job, "surroundings": told}) + "\n")
    done = 0
    for clip in job["clips"]:
        send("progress", stage="score", fraction=0.5, text="a clip")
        for want in clip["wants"]:
            if done == manners.get("die_after"):
                os.kill(os.getpid(), signal.SIGKILL)
            answer(clip, want, manners)
            done += 1
    send("counts", decodes=len(job["clips"]), models={}, pairs={"run": 0, "of": 0})
    send("done")


def answer(clip: dict[str, Any], want: dict[str, Any], manners: dict[str, Any]) -> None:
    name, key = want["dimension"], want["key"]
    if name in manners.get("trouble", {}):
        status, detail = manners["trouble"][name]
        send("trouble", dimension=name, status=status, detail=detail, keys=[key])
    elif name in manners.get("unscorable", {}):
        send("unscorable", key=key, dimension=name, reason=manners["unscorable"][name])
    else:
        valid = name not in manners.get("invalid", ())
        value = value_of(clip["path"], name) if valid else 0.0
        if name == "static_filter":
            value = float(not manners.get("moving"))
        frames = 1 + len(clip["prompt"])
        facts = {"strict": value / 2} if name in ("color", "object_class") else {}
        send("score", key=key, dimension=name, value=value, valid=valid, weight=frames, facts=facts)


def main() -> None:
    folder = Path(sys.argv[1])
    manners = json.loads((folder / "manners.json").read_text())
    if sys.argv[2] == "--facts":
        versions = VERSIONS | manners.get("versions", {})
        facts = {"versions": versions, "full_info": manners["full_info"]}
        print(json.dumps({**facts, "cuda": False, "problems": []}))
        return
    judge(folder, json.loads(Path(sys.argv[2]).read_text()), manners)


if __name__ == "__main__":
    main()
