"""A worker that keeps to the protocol and to the store but computes nothing, so that runs are fast.

What a task's method is called decides how it ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from harness.generate.generate import FACTS_FILE, LATENTS_FILE, LOSSLESS_FILE, MP4_FILE
from harness.measure.measure import MEASURE_FILE
from harness.score.registry import load_scorer
from harness.score.scorer import SCORE_FILE
from harness.store.lifeline import die_with
from harness.store.store import Store
from harness.task import CellTask, Job, MeasureTask, PoolTask, TextTask

CLIP_S = float(os.environ.get("FAKE_CLIP_S", "0.0"))
REPORT: dict[str, Any] = {
    "execution": "simulated",
    "layers": [],
    "seconds": 1.0,
    "calibration_forwards": 0,
    "calibration_samples": 0,
    "footprint": {
        "target_layers": 1,
        "target_parameters": 24,
        "total_parameters": 24,
        "quantized_parameters": 24,
        "avg_w_bits": 4.0,
        "avg_a_bits": 6.0,
        "fp16_bytes": 48,
        "artifact_bytes": 12,
    },
}


def send(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def misbehave(method: str) -> None:
    """End as the method's name says."""
    if method.endswith(":Crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if method.endswith(":Killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if method.endswith(":Hungry"):
        send("failed", status="oom", detail="OutOfMemoryError: tried to allocate 1 EiB")
        sys.exit(1)
    if method.endswith(":FullDisk"):
        detail = "OSError: [Errno 28] No space left on device"
        send("failed", status="error", detail=detail, disk_full=True)
        sys.exit(1)
    if method.endswith(":Slow"):
        time.sleep(3600)
    if method.endswith(":Wrong"):
        print("the last line of the log", file=sys.stderr)
        sys.exit(3)


def report_of(task: CellTask) -> dict[str, object]:
    """What quantizing would have reported; ``Switched`` has a step policy with two forms."""
    if not task.method.name.endswith(":Switched"):
        return REPORT
    return {**REPORT, "footprint": {**REPORT["footprint"], "avg_a_bits_by_choice": [4.0, 8.0]}}


def facts_of(task: CellTask, clip: int) -> dict[str, object]:
    """What a clip says of itself; the first of ``Switched`` ran one step more at eight bits."""
    if not task.method.name.endswith(":Switched"):
        return {}
    return {"steps_by_choice": [1, 0, 0, 1] if clip == 0 else [1, 0, 0, 0]}


def cell(task: CellTask, store: Store) -> None:
    misbehave(task.method.name)
    wanted = task.artifact
    if wanted is not None and store.find("artifact", wanted.key) is None:
        with store.build("artifact", wanted.key, wanted.inputs, {"label": task.id}) as folder:
            (folder / "report.json").write_text(json.dumps(report_of(task)))
            (folder / "figures").mkdir()
            (folder / "figures" / "curve.png").write_bytes(b"png")
    if any("overflowing" in one.prompt.text for one in task.clips):
        send("failed", status="diverged", detail="1 of 1 clips diverged; try bfloat16")
        sys.exit(1)
    for i, one in enumerate(task.clips):
        send("progress", stage="generate", fraction=i / len(task.clips), text=f"clip {i + 1}")
        if store.find("clip", one.clip.key) is None:
            with store.build("clip", one.clip.key, one.clip.inputs, {"label": task.id}) as folder:
                for name in (MP4_FILE, LOSSLESS_FILE, LATENTS_FILE):
                    # A repeat of the unquantized model gives the same coded file.
                    same = name == MP4_FILE and task.artifact is None
                    made = f"{one.prompt.text} {one.seed}" if same else one.clip.key
                    (folder / name).write_text(f"{made} {name}\n" * 500)
                (folder / FACTS_FILE).write_text(json.dumps(facts_of(task, i)))
                time.sleep(CLIP_S)
    for one in task.clips:
        clip = store.find("clip", one.clip.key)
        assert clip is not None
        reference = store.find("clip", one.reference) if one.reference else None
        for scorer in (load_scorer(name) for name in task.scorers):
            if scorer.paired and reference is None:
                continue
            wanted_score = scorer.key(one.prompt, clip, reference)
            if store.find("score", wanted_score.key) is None:
                with store.build("score", wanted_score.key, wanted_score.inputs) as folder:
                    values = {metric.name: 1.0 for metric in scorer.metrics}
                    (folder / SCORE_FILE).write_text(json.dumps({"values": values, "failed": ""}))


def main() -> None:
    job = Job.from_json(Path(sys.argv[1]).read_text())
    die_with(job.parent)
    store, task = Store(job.store), job.task
    if isinstance(task, CellTask):
        cell(task, store)
    elif isinstance(task, TextTask):
        for text, wanted in task.texts.items():
            if "unreadable" in text:
                send("failed", status="error", detail="no such word")
                sys.exit(1)
            with store.build("text", wanted.key, wanted.inputs) as folder:
                (folder / "text.json").write_text(json.dumps({"text": text, "cut": []}))
    elif isinstance(task, PoolTask):
        if task.seed == 13:
            send("failed", status="error", detail="unlucky pool")
            sys.exit(1)
        with store.build("pool", task.pool.key, task.pool.inputs) as folder:
            (folder / "pool.json").write_text("{}")
    elif isinstance(task, MeasureTask):
        values = {row.cell: {"step_latency_s": 0.01} for row in task.rows}
        with store.build("measure", task.measure.key, task.measure.inputs) as folder:
            (folder / MEASURE_FILE).write_text(json.dumps({"busy": 0.0, "values": values}))
    send("done")


if __name__ == "__main__":
    main()
