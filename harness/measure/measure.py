"""The measure stage: latency and memory of every row of a model, interleaved, alone on the machine.

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
from typing import TYPE_CHECKING, Any

import psutil

from harness.errors import HarnessError
from harness.spec import COST, SIMULATED, Metric, Value
from harness.store.keys import Keyed
from harness.store.sources import sources_digest
from harness.task import MeasureTask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from diffusers import DiffusionPipeline

    from harness.spec import GenSpec, ModelSpec
    from harness.store.store import Entry, Store
    from harness.task import MeasuredRow

MEASURE_FILE = "measure.json"
ROUNDS = 7
CLIPS = 3
WARMUP = 2
BUSY = 0.1
"""Share of the processor that others may use before the timings carry a warning."""
PROMPT = ""  # the time of a clip does not depend on what it shows
KERNEL = "kernel:"

METRICS = (
    Metric(
        name="step_latency_s", unit="s", better="lower", title="step\nms", block=COST, whole=True,
        digits=1, scale=1e3, spread="step_latency_iqr_s", measured=True,
    ),
    Metric(name="step_latency_iqr_s", unit="s", block=COST, whole=True, shown=False),
    Metric(
        name="step_speedup", unit="ratio", better="higher", title="speed\nvs fp", block=COST,
        whole=True, suffix="x",
    ),
    Metric(
        name="clip_latency_s", unit="s", better="lower", title="clip\ns", block=COST, whole=True,
        spread="clip_latency_iqr_s", measured=True,
    ),
    Metric(name="clip_latency_iqr_s", unit="s", block=COST, whole=True, shown=False),
    Metric(
        name="peak_bytes", unit="bytes", better="lower", title="peak\nMB", block=COST, whole=True,
        digits=0, scale=1e-6, measured=True,
    ),
)  # fmt: skip


def measure_task(
    model: ModelSpec, gen: GenSpec, rows: Sequence[MeasuredRow], cohort: Mapping[str, Any]
) -> MeasureTask:
    """The measuring of one model's rows, with the key of what it leaves.

    Args:
        model: The model.
        gen: Its generation settings.
        rows: All rows that take turns.
        cohort: Device, libraries, threads.
    """
    measure = Keyed.of(
        "measure",
        {
            "rows": sorted(f"{row.cell}={row.artifact}" for row in rows),
            "gen": gen,
            "cohort": {**cohort, "model": model.revision + model.variant},
            "protocol": {"rounds": ROUNDS, "clips": CLIPS, "warmup": WARMUP},
            "sources": sources_digest([__name__, "harness.measure.memory"]),
        },
    )
    return MeasureTask(
        id=f"measure--{model.name}",
        model=model,
        gen=gen,
        rows=tuple(rows),
        measure=measure,
        rounds=ROUNDS,
        clips=CLIPS,
    )


def measured_values(
    entry: Entry | None, cell: str, reference: str, execution: str
) -> Iterator[Value]:
    """What was measured of a row.

    Args:
        entry: The measured set, None where nothing was measured.
        cell: Id of the row.
        reference: Id of the unquantized row that its speed is held against.
        execution: How the row computes; empty for an unquantized one.
    """
    if entry is None:
        return
    every = entry.json(MEASURE_FILE)["values"]
    found = dict(every.get(cell, {}))
    base = every.get(reference, {}).get("step_latency_s")
    if execution.startswith(KERNEL) and base and found.get("step_latency_s"):
        found["step_speedup"] = base / found["step_latency_s"]
    for metric, value in found.items():
        yield Value(
            metric=metric, value=value, key=entry.key, at=entry.manifest["at"], detail=execution
        )


def measuring_warning(entry: Entry | None, model: str) -> str:
    """What must be said of a measured set that was taken while something else used the machine."""
    busy = 0.0 if entry is None else float(entry.json(MEASURE_FILE)["busy"])
    if busy <= BUSY:
        return ""
    return (
        f"the machine was {busy:.0%} busy with other work when {model} was timed: its latencies "
        "are not to be relied on"
    )


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
            values[row.cell]["peak_bytes"] = _peak(task, store, row, device)
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
    from harness.models.sample import sample_clip

    times: dict[str, list[float]] = {cell: [] for cell in pipelines}
    for turn in range(task.clips):
        for cell, pipeline in pipelines.items():
            progress(0.6 + 0.4 * turn / task.clips, f"whole clip, round {turn + 1}")
            times[cell].append(_seconds(partial(sample_clip, pipeline, PROMPT, task.gen, seed=0)))
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
            os.write(into, str(_peak(task, store, row, device)).encode())
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


def _peak(task: MeasureTask, store: Store, row: MeasuredRow, device: str) -> float:
    """Peak bytes of generating one clip: resident in this process, or allocated on the device."""
    from harness.measure.memory import peak_memory
    from harness.models.sample import sample_clip

    pipeline = _open(task, store, row, device)
    gc.collect()
    with peak_memory(device) as peak:
        sample_clip(pipeline, PROMPT, task.gen, seed=0)
    return float(peak())
