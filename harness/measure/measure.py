"""The measure stage: latency and memory of what really runs, in turns, alone on the machine.

Rows take turns, so that a change of clock or load meets all of them: in each turn a row is opened,
warmed up, timed and closed, so that one denoiser at a time is in memory. On a CPU each turn of
a row is a process of its own, whose peak is that of the row alone. What is reported is the median
and the interquartile range over all turns. A simulated row computes in full precision, which says
nothing about the speed of its widths: it is not timed.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import statistics
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil

from harness.errors import HarnessError
from harness.generate.networks import open_decoder, open_denoiser
from harness.generate.text import read_text
from harness.kernels.registry import OFF
from harness.kernels.request import execution_key
from harness.models.offload import NONE
from harness.spec import COST, KERNEL, SIMULATED, Metric, Value
from harness.store.keys import Keyed
from harness.store.sources import sources_digest
from harness.task import MeasureTask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from harness.spec import GenSpec, ModelSpec
    from harness.store.store import Entry, Store
    from harness.task import MeasuredRow

MEASURE_FILE = "measure.json"
LATENTS_FILE = "latents.safetensors"
TURNS = 3
STEPS = 3
"""Denoising steps that are timed in a turn; one clip is, too."""
WARMUP = 1
BUSY = 0.1
"""Share of the processor that others may use before the timings carry a warning."""

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
    model: ModelSpec,
    gen: GenSpec,
    rows: Sequence[MeasuredRow],
    cohort: Mapping[str, Any],
    text: str,
    *,
    offload: str = NONE,
    kernels: str = OFF,
) -> MeasureTask:
    """The measuring of one model's rows, with the key of what it leaves.

    Args:
        model: The model.
        gen: Its generation settings.
        rows: All rows that take turns.
        cohort: Device, libraries, threads.
        text: Key of the encoded empty prompt: the time of a clip does not depend on what it shows.
        offload: What of the model waits in the host's memory; times and peaks depend on it.
        kernels: What computes quantized layers.
    """
    placed = {} if offload == NONE else {"offload": offload}
    measure = Keyed.of(
        "measure",
        {
            "rows": sorted(f"{row.cell}={row.artifact}" for row in rows),
            "gen": gen,
            "cohort": {**cohort, "model": model.revision + model.variant, **placed},
            "execution": execution_key(SIMULATED, kernels),
            "protocol": {"turns": TURNS, "steps": STEPS, "warmup": WARMUP},
            "sources": sources_digest([__name__, "harness.measure.memory"]),
        },
    )
    return MeasureTask(
        id=f"measure--{model.name}",
        model=model,
        gen=gen,
        rows=tuple(rows),
        measure=measure,
        turns=TURNS,
        steps=STEPS,
        text=text,
        offload=offload,
        kernels=kernels,
    )


def measured_values(
    entry: Entry | None, cell: str, reference: str, execution: str
) -> Iterator[Value]:
    """What was measured of a row; nothing of one that is simulated, whatever was timed.

    Args:
        entry: The measured set, None where nothing was measured.
        cell: Id of the row.
        reference: Id of the unquantized row that its speed is held against.
        execution: How the row computes; empty for an unquantized one.
    """
    if entry is None or execution == SIMULATED:
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
    # Asked while this process rests: what is busy then is somebody else.
    busy = psutil.cpu_percent(interval=1.0) / 100
    bench = _Bench(task=task, store=store, device=device, scratch=store.scratch("measure"))
    turns: dict[str, list[_Turn]] = {row.cell: [] for row in task.rows}
    decoding: list[_Turn] = []
    try:
        for turn in range(task.turns):
            rows = [row for row in task.rows if row.cell in turns]
            for i, row in enumerate(rows):
                progress((turn + i / len(rows)) / task.turns, f"turn {turn + 1}, {row.cell}")
                found = bench.apart(partial(bench.denoise, row), row.cell)
                if found is None:
                    del turns[row.cell]
                else:
                    turns[row.cell].append(found)
            decoded = bench.apart(bench.decode, "the decoder")
            assert decoded is not None
            decoding.append(decoded)
    finally:
        shutil.rmtree(bench.scratch, ignore_errors=True)
    with store.build("measure", task.measure.key, task.measure.inputs) as folder:
        values = {cell: _values(taken, decoding) for cell, taken in turns.items()}
        text = json.dumps(
            {"busy": busy, "values": values}, indent=1, sort_keys=True, allow_nan=False
        )
        (folder / MEASURE_FILE).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Turn:
    """What one turn of a row, or of the decoder, took.

    Attributes:
        clip_s: Seconds of denoising, or of decoding, one clip.
        peak_bytes: Most memory meanwhile.
        step_s: Seconds of each timed denoising step.
    """

    clip_s: float
    peak_bytes: float
    step_s: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bench:
    """Opens a row or the decoder, times it, and closes it.

    Attributes:
        scratch: Where the latents of the row that was timed last lie, for the decoder.
    """

    task: MeasureTask
    store: Store
    device: str
    scratch: Path

    def apart(self, work: Callable[[], _Turn | None], what: str) -> _Turn | None:
        """Do a turn, on a CPU in a process that does nothing else.

        This process computes nothing then: a forked child starts from a clean memory.
        """
        if self.device == "cpu" and hasattr(os, "fork"):
            return _in_child(work, what)
        return work()

    def denoise(self, row: MeasuredRow) -> _Turn | None:
        """Open a row, warm it up, time one clip and single steps; nothing of a simulated one."""
        from safetensors.torch import save_file

        from harness.kernels.dispatch import execution_of
        from harness.measure.memory import peak_memory
        from harness.models.sample import denoise, denoiser_step

        task, text = self.task, read_text(self.store, self.task.text)
        folder = self.store.folder("artifact", row.artifact) if row.artifact else None
        pipeline = open_denoiser(
            task.model, task.gen, self.device, folder, offload=task.offload, kernels=task.kernels
        )
        if execution_of(pipeline.transformer).label == SIMULATED:
            return None
        step = denoiser_step(pipeline, task.gen, text)
        for _ in range(WARMUP):
            step()
        gc.collect()
        with peak_memory(self.device) as peak:
            seconds = _seconds(
                lambda: save_file(
                    {"latents": denoise(pipeline, text, task.gen, seed=0).cpu().contiguous()},
                    self.scratch / LATENTS_FILE,
                )
            )
            most = float(peak())
        steps = tuple(_seconds(step) for _ in range(task.steps))
        return _Turn(clip_s=seconds, peak_bytes=most, step_s=steps)

    def decode(self) -> _Turn:
        """Open the decoder, time one clip."""
        from safetensors.torch import load_file

        from harness.measure.memory import peak_memory
        from harness.models.sample import decode

        task, text = self.task, read_text(self.store, self.task.text)
        latents = load_file(self.scratch / LATENTS_FILE)["latents"]
        pipeline = open_decoder(task.model, task.gen, self.device)
        gc.collect()
        with peak_memory(self.device) as peak:
            seconds = _seconds(lambda: decode(pipeline, latents, text, task.gen, seed=0))
        return _Turn(clip_s=seconds, peak_bytes=float(peak()))


def _values(turns: Sequence[_Turn], decoding: Sequence[_Turn]) -> dict[str, float]:
    """What was found of a row; all rows have the same decoder."""
    clips = [one.clip_s + two.clip_s for one, two in zip(turns, decoding, strict=True)]
    return {
        **_spread("step_latency", [seconds for turn in turns for seconds in turn.step_s]),
        **_spread("clip_latency", clips),
        "peak_bytes": max(turn.peak_bytes for turn in (*turns, *decoding)),
    }


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Median and interquartile range."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {f"{name}_s": middle, f"{name}_iqr_s": high - low}


def _in_child(work: Callable[[], _Turn | None], what: str) -> _Turn | None:
    """Do a turn in a forked process."""
    from harness.store.lifeline import die_with

    import_everything()
    out, into = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            die_with(parent)
            found = work()
            os.write(into, json.dumps(None if found is None else asdict(found)).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            # Never return into the parent's stack: its finally blocks are not ours to run.
            sys.stderr.flush()
            os._exit(status)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        text = pipe.read()
    _, code = os.waitpid(child, 0)
    if code or not text:
        raise HarnessError(
            f"measuring {what} failed (status {code})", "see the log of the measuring worker"
        )
    told = json.loads(text)
    return None if told is None else _Turn(**told)


def import_everything() -> None:
    """Import what generation needs, so that every forked child starts from the same memory."""
    import diffusers  # noqa: F401
    import torch  # noqa: F401

    import harness.models.load
    import harness.models.sample
    import harness.quant.layers.artifact  # noqa: F401
