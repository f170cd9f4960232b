"""Measure: latency and memory of every row of a model, interleaved, alone on the machine.

Rows take turns, so that a change of clock or load meets all of them; what is reported is the median
and the interquartile range over the rounds. A simulated row's step is timed for the record only: it
computes in full precision and says nothing about the speed of its widths.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from harness.errors import HarnessError
from harness.method import SIMULATED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diffusers import DiffusionPipeline

    from harness.store.store import Store
    from harness.task import MeasuredRow, MeasureTask

MEASURE_FILE = "measure.json"
ROUNDS = 7
CLIPS = 3
WARMUP = 2
BUSY = 0.1
"""Share of the processor that others may use before the timings carry a warning."""
PROMPT = ""  # the time of a clip does not depend on what it shows


def protocol() -> dict[str, int]:
    """What decides how the timings were taken; part of their key."""
    return {"version": 2, "rounds": ROUNDS, "clips": CLIPS, "warmup": WARMUP}


def measure(
    task: MeasureTask, store: Store, device: str, progress: Callable[[float, str], None]
) -> None:
    """Time all rows and publish the values by cell."""
    values: dict[str, dict[str, float]] = {row.cell: {} for row in task.rows}
    real = [row for row in task.rows if not _simulated(store, row)]
    # Asked while this process rests: what is busy then is somebody else.
    busy = psutil.cpu_percent(interval=1.0) / 100
    # First, while this process has computed nothing yet: a forked child starts from a clean memory.
    if device == "cpu" and hasattr(os, "fork"):
        for i, row in enumerate(real):
            progress(0.3 * i / len(real), f"memory of {row.cell}")
            values[row.cell]["peak_bytes"] = _peak_in_child(task, store, row, device)
    pipelines = {row.cell: _open(task, store, row, device) for row in task.rows}
    _time_steps(task, pipelines, values, progress)
    _time_clips(task, {row.cell: pipelines[row.cell] for row in real}, values, progress)
    if device != "cpu":
        del pipelines
        for row in real:
            values[row.cell]["peak_bytes"] = _peak_cuda(task, store, row, device)
    with store.build("measure", task.measure.key, task.measure.inputs) as folder:
        facts = {"busy": busy, "values": values}
        text = json.dumps(facts, indent=1, sort_keys=True, allow_nan=False)
        (folder / MEASURE_FILE).write_text(text + "\n", encoding="utf-8")


def _simulated(store: Store, row: MeasuredRow) -> bool:
    return bool(row.artifact) and execution(store, row.artifact) == SIMULATED


def execution(store: Store, artifact: str) -> str:
    """How an artifact computes: ``simulated`` or ``kernel:<name>``."""
    entry = store.find("artifact", artifact)
    if entry is None:
        raise HarnessError(f"artifact {artifact[:12]} is gone", "run the same command again")
    return str(entry.json("report.json")["execution"])


def _open(task: MeasureTask, store: Store, row: MeasuredRow, device: str) -> DiffusionPipeline:
    from harness.models.load import load_pipeline
    from harness.quant.layers.artifact import load_artifact_

    pipeline = load_pipeline(task.model, device=device, dtype=task.gen.dtype)
    if row.artifact:
        load_artifact_(pipeline.transformer, store.folder("artifact", row.artifact))
    return pipeline


def _time_steps(
    task: MeasureTask,
    pipelines: dict[str, DiffusionPipeline],
    values: dict[str, dict[str, float]],
    progress: Callable[[float, str], None],
) -> None:
    from harness.models.sample import denoiser_step

    steps = {cell: denoiser_step(pipeline, task.gen) for cell, pipeline in pipelines.items()}
    for step in steps.values():
        for _ in range(WARMUP):
            step()
    times: dict[str, list[float]] = {cell: [] for cell in steps}
    for turn in range(task.rounds):
        progress(0.3 + 0.3 * turn / task.rounds, f"denoiser step, round {turn + 1}")
        for cell, step in steps.items():
            times[cell].append(_seconds(step))
    for cell, taken in times.items():
        values[cell] |= _spread("step_latency", taken)


def _time_clips(
    task: MeasureTask,
    pipelines: dict[str, DiffusionPipeline],
    values: dict[str, dict[str, float]],
    progress: Callable[[float, str], None],
) -> None:
    from harness.models.sample import sample

    times: dict[str, list[float]] = {cell: [] for cell in pipelines}
    for turn in range(task.clips):
        for cell, pipeline in pipelines.items():
            progress(0.6 + 0.4 * turn / task.clips, f"whole clip, round {turn + 1}")
            times[cell].append(_seconds(partial(sample, pipeline, PROMPT, task.gen, seed=0)))
    for cell, taken in times.items():
        values[cell] |= _spread("clip_latency", taken)


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Median and interquartile range."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {f"{name}_s": middle, f"{name}_iqr_s": high - low}


def _peak_in_child(task: MeasureTask, store: Store, row: MeasuredRow, device: str) -> float:
    """Peak resident bytes of generating one clip, in a process that does nothing else."""
    from harness.store.lifeline import die_with

    import_everything()
    out, into = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            die_with(parent)
            os.write(into, str(_peak_resident(task, store, row, device)).encode())
            status = 0
        finally:
            # Never return into the parent's stack: its finally blocks are not ours to run.
            os._exit(status)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        text = pipe.read()
    _, code = os.waitpid(child, 0)
    if code or not text:
        raise HarnessError(
            f"measuring the memory of '{row.cell}' failed (status {code})",
            "see the log of the measuring worker",
        )
    return float(text)


def import_everything() -> None:
    """Import what generation needs, so that every forked child starts from the same memory."""
    import diffusers  # noqa: F401
    import torch  # noqa: F401

    import harness.models.load
    import harness.models.sample
    import harness.quant.layers.artifact  # noqa: F401


def _peak_resident(task: MeasureTask, store: Store, row: MeasuredRow, device: str) -> int:
    from harness.models.sample import sample

    pipeline = _open(task, store, row, device)
    gc.collect()
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # Linux: sets the peak (VmHWM) to what is resident now
    sample(pipeline, PROMPT, task.gen, seed=0)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    # macOS gives bytes; there the peak includes loading.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _peak_cuda(task: MeasureTask, store: Store, row: MeasuredRow, device: str) -> float:
    import torch

    from harness.models.sample import sample

    pipeline = _open(task, store, row, device)
    torch.cuda.reset_peak_memory_stats(device)
    sample(pipeline, PROMPT, task.gen, seed=0)
    return float(torch.cuda.max_memory_allocated(device))
