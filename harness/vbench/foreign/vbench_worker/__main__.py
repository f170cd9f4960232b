"""The worker: ``python -P -m vbench_worker job.json``, ``--facts`` or ``--check``.

JSON in, events on stdout, an exit code. All that libraries print goes to stderr.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO, Any

from vbench_worker import compat
from vbench_worker.lifeline import die_with
from vbench_worker.protocol import Events, Job, is_oom, one_line
from vbench_worker.substitute import dimension_module

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
FULL_INFO = "VBench_full_info.json"
NEEDED = ("vbench", "torch", "torchvision", "numpy", "opencv", "decord")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def facts() -> dict[str, Any]:
    """What this interpreter holds: versions, the official list of prompts, CUDA, what is wrong."""
    versions = compat.versions()
    problems = [f"{name} is not installed" for name in NEEDED if not versions[name]]
    found = importlib.util.find_spec("vbench")
    full_info = Path(found.origin).parent / FULL_INFO if found and found.origin else None
    return {
        "versions": versions,
        "full_info": str(full_info) if full_info and full_info.is_file() else "",
        "cuda": _has_cuda() if versions["torch"] else False,
        "problems": problems,
    }


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def check(out: IO[str]) -> None:
    """Apply every measure and import every dimension: one JSON line each."""

    def report(kind: str, name: str, action: Any) -> None:
        line = {"kind": kind, "name": name, "ok": True, "detail": ""}
        try:
            line["detail"] = action() or ""
        except Exception as error:
            traceback.print_exc()
            line |= {"ok": False, "detail": one_line(error)}
        out.write(json.dumps(line) + "\n")
        out.flush()

    with tempfile.TemporaryDirectory() as weights:
        compat.surroundings(Path(weights))
        _lend_vocabulary(Path(weights))
        for measure in compat.BEFORE_IMPORT:
            report("compat", measure.__name__, measure)
        for measure in compat.AFTER_IMPORT:
            report("compat", measure.__name__, measure)
        for dimension in _dimensions():
            report("dimension", dimension, lambda name=dimension: _import(name))
        os.chdir("/")  # the folder goes


def _lend_vocabulary(weights: Path) -> None:
    """Put the vocabulary that ViCLIP reads at import where it looks; openai-clip has the file."""
    found = importlib.util.find_spec("clip")
    if found is not None and found.origin is not None:
        folder = weights / "ViCLIP"
        folder.mkdir()
        (folder / VOCABULARY).symlink_to(Path(found.origin).with_name(VOCABULARY))


def _dimensions() -> list[str]:
    from vbench_worker import judges

    names = sorted(judges.all_judges())
    return [name for name in names if name != "flow_score"]  # it has no module of its own


def _import(name: str) -> str:
    if name == "static_filter":
        importlib.import_module("vbench.cli.static_filter")
    else:
        dimension_module(name)
    return ""


def score(job: Job, events: Events) -> None:
    """Do one job."""
    import cv2
    import torch

    torch.set_num_threads(job.threads)
    cv2.setNumThreads(job.threads)
    device = torch.device(job.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"torch of {sys.executable} cannot use device '{job.device}'")
    from vbench_worker.judges import Settings, Shelf, all_judges, all_loaders
    from vbench_worker.scoring import Scoring

    settings = Settings(
        device=device, precision=job.precision, weights=job.weights, batch=job.batch
    )
    shelf = Shelf(settings=settings, loaders=all_loaders())
    job.scratch.mkdir(parents=True, exist_ok=True)
    Scoring(job=job, events=events, shelf=shelf, judges=all_judges()).run()


def main(arguments: list[str]) -> int:
    """Do what the command line says; returns the exit code."""
    # Whatever a library prints must not land between the events.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if arguments == ["--facts"]:
        out.write(json.dumps(facts()) + "\n")
        out.flush()
        return 0
    if arguments == ["--check"]:
        check(out)
        return 0
    events = Events(out=out)
    try:
        job = Job.read(Path(arguments[0]))
        die_with(job.parent)
        compat.prepare(job.weights)
        score(job, events)
    except Exception as error:
        traceback.print_exc()
        full = isinstance(error, OSError) and error.errno in _DISK_FULL
        status = "oom" if is_oom(error) else "error"
        events.send("failed", status=status, detail=one_line(error), disk_full=full)
        return 1
    events.send("done")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
