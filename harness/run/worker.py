"""The worker: ``python -P -m harness.run.worker job.json``.

JSON in, files out, events on stdout, an exit code. Each stage loads the networks that it uses, and
frees them before the next. Events are JSON lines: ``progress`` (stage, fraction, text), ``alive``
(nothing to report, but work goes on), ``clip`` (seconds), ``stage`` (stage, seconds), ``trouble``
(keys of scores that could not be made, status, detail), and at the end ``done`` or ``failed``
(status, detail, disk_full). All that libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from harness.errors import DivergedError, HarnessError, UnsupportedError
from harness.run.alive import Pulse, calls_said, circumstances
from harness.spec import Status
from harness.store.durable import DISK_FULL, link_tree
from harness.store.lifeline import die_with
from harness.store.store import Store
from harness.store.work import claim
from harness.task import ALIVE, CellTask, Job, MeasureTask, PoolTask, TextTask

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import DiffusionPipeline

    from harness.store.keys import Keyed
    from harness.store.store import Entry
    from harness.task import ClipTask

PROGRESS_INTERVAL_S = 0.2


@dataclass(kw_only=True)
class Events:
    """The line to the run."""

    out: IO[str]
    last: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, event: str, **facts: Any) -> None:
        """Write one event."""
        with self.lock:
            self.out.write(json.dumps({"event": event, **facts}) + "\n")
            self.out.flush()

    def progress(self, stage: str) -> Callable[[float, str], None]:
        """A progress function for one stage; it writes a few lines a second at most."""

        def report(fraction: float, text: str) -> None:
            if fraction >= 1 or time.monotonic() - self.last >= PROGRESS_INTERVAL_S:
                self.last = time.monotonic()
                self.send("progress", stage=stage, fraction=round(float(fraction), 4), text=text)

        return report

    def waiting(self, stage: str) -> Callable[[], None]:
        """What to call while another process makes the same result."""
        report = self.progress(stage)
        return lambda: report(0.0, "another run is making it")


def run_job(job: Job, events: Events, pulse: Pulse) -> None:
    """Do one task."""
    _prepare_torch(job)
    store = Store(job.store)
    if isinstance(job.task, TextTask):
        from harness.generate.text import encode_missing

        with pulse.feeling_modules():
            encode_missing(
                job.task, store, job.device, events.progress("encode"), offload=job.offload
            )
    elif isinstance(job.task, PoolTask):
        with pulse.feeling_modules():
            _pool(job.task, job, store, events)
    elif isinstance(job.task, CellTask):
        with pulse.feeling_modules():
            _Cell(task=job.task, job=job, store=store, events=events).run()
    elif isinstance(job.task, MeasureTask):
        _measure(job.task, job, store, events)
    else:
        raise TypeError("clips are judged by the worker of the scoring environment")


def _prepare_torch(job: Job) -> None:
    import torch

    torch.set_num_threads(job.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if job.device != "cpu" and not torch.cuda.is_available():
        raise HarnessError(
            f"device '{job.device}' was found by the driver but torch cannot use it",
            "install a torch build with CUDA, or choose --device cpu",
        )


def _pool(task: PoolTask, job: Job, store: Store, events: Events) -> None:
    from harness.generate.networks import open_denoiser
    from harness.generate.text import read_text
    from harness.models.trajectories import CalibrationPool, record_pool

    if store.find("pool", task.pool.key) is not None:
        return
    waiting = events.waiting("record")
    with claim(store, "pool", task.pool.key, stamp=circumstances(job), waiting=waiting) as work:
        if store.find("pool", task.pool.key) is None:
            recorded = work.folder / "pool"
            recorded.mkdir(exist_ok=True)
            pipeline = open_denoiser(task.model, task.gen, job.device, offload=job.offload)
            record_pool(
                pipeline, task.prompts, task.gen,
                seed=task.seed, folder=recorded, progress=events.progress("record"),
                texts=lambda text: read_text(store, task.texts[text]),
            )  # fmt: skip
            about = {"label": task.model.name, "seconds": CalibrationPool.open(recorded).seconds}
            with store.build("pool", task.pool.key, task.pool.inputs, about) as folder:
                link_tree(recorded, folder)
        work.finish()


def _measure(task: MeasureTask, job: Job, store: Store, events: Events) -> None:
    from harness.measure.measure import measure

    if store.find("measure", task.measure.key) is None:
        measure(task, store, job.device, events.progress("measure"))


@dataclass(kw_only=True)
class _Cell:
    """One row, from quantization to scores."""

    task: CellTask
    job: Job
    store: Store
    events: Events
    diverged: dict[str, str] = field(default_factory=dict)  # where, by the key of the clip

    def run(self) -> None:
        artifact = self._quantize()
        missing = [c for c in self.task.clips if self.store.find("clip", c.clip.key) is None]
        self._denoise(artifact, missing)
        self._decode(missing)
        self._score()
        if self.diverged:
            raise self._no_clips()

    def _open(self, artifact: Entry | None = None) -> DiffusionPipeline:
        from harness.generate.networks import open_denoiser

        folder = None if artifact is None else artifact.folder
        task, job = self.task, self.job
        return open_denoiser(
            task.model, task.gen, job.device, folder, offload=job.offload, kernels=task.kernels
        )

    def _quantize(self) -> Entry | None:
        """Find the artifact or make it; it is verified before it is published."""
        task, wanted = self.task, self.task.artifact
        if wanted is None:
            return None
        if (found := self.store.find("artifact", wanted.key)) is not None:
            return found
        pool = self.store.find("pool", task.pool) if task.pool else None
        if task.pool and pool is None:
            raise HarnessError("the recorded calibration is gone", "run the same command again")
        stamp = circumstances(self.job) | {"pool": "" if pool is None else pool.content}
        waiting = self.events.waiting("quantize")
        with claim(self.store, "artifact", wanted.key, stamp=stamp, waiting=waiting) as work:
            if self.store.find("artifact", wanted.key) is None:
                self._make_artifact(wanted, pool, work.folder)
            work.finish()
        return self.store.find("artifact", wanted.key)

    def _make_artifact(self, wanted: Keyed, pool: Entry | None, kept: Path) -> None:
        from harness.artifact.quantize import quantize
        from harness.artifact.verify import verify
        from harness.bits import BitSpec
        from harness.generate.text import read_text
        from harness.plan.registry import load_method

        task = self.task
        method, bits = load_method(task.method.name), BitSpec.parse(task.bits)
        started = time.monotonic()
        about = {"label": task.method.label, "model": _about(task), "bits": task.bits}
        about["of"] = task.model.name
        with self.store.build("artifact", wanted.key, wanted.inputs, about) as folder:
            quantize(
                self._open(),
                method,
                bits=bits,
                options=dict(task.method.options),
                family=task.model.family,
                gen=task.gen,
                pool=None if pool is None else pool.folder,
                seed=task.method.calibration_seed,
                out=folder,
                progress=self.events.progress("quantize"),
                kept=kept,
                text=read_text(self.store, task.text),
            )
            self.events.progress("verify")(0.0, "verifying the artifact")
            verify(self._open(), folder, family=task.model.family, bits=bits, fresh=True)
        self.events.send("stage", stage="quantize", seconds=time.monotonic() - started)

    def _denoise(self, artifact: Entry | None, missing: list[ClipTask]) -> None:
        """Sample the latents that the store lacks, from the artifact as it lies on the disk."""
        from harness.generate.generate import denoise_clip, latents_key

        find = self.store.find
        todo = [c for c in missing if find("latents", latents_key(c.clip).key) is None]
        if not todo:
            return
        pipeline = self._open(artifact)
        report = self.events.progress("generate")
        total, found = len(self.task.clips), len(self.task.clips) - len(todo)
        for i, wanted in enumerate(todo, start=found):
            place = (i / total, f"clip {i + 1}")
            report(*place)
            # Another run may have made it meanwhile.
            if find("clip", wanted.clip.key) is not None:
                continue
            try:
                with calls_said(pipeline.transformer, report, *place):
                    denoise_clip(pipeline, wanted, self.task.gen, self.store)
            except DivergedError as error:
                self._note(wanted, error)

    def _decode(self, missing: list[ClipTask]) -> None:
        """Make the clips of the latents, and publish each."""
        from harness.generate.generate import decode_clip, latents_key
        from harness.generate.networks import open_decoder

        todo = [c for c in missing if c.clip.key not in self.diverged]
        if not todo:
            return
        pipeline = open_decoder(self.task.model, self.task.gen, self.job.device)
        report = self.events.progress("decode")
        for i, wanted in enumerate(todo):
            report(i / len(todo), f"clip {i + 1}")
            if self.store.find("clip", wanted.clip.key) is not None:
                self.store.discard("latents", latents_key(wanted.clip).key)
                continue
            label = f"{self.task.id}/{wanted.prompt.id}-s{wanted.seed}"
            try:
                seconds = decode_clip(pipeline, wanted, self.task.gen, self.store, label=label)
            except DivergedError as error:
                self._note(wanted, error)
                continue
            self.events.send("clip", seconds=seconds)

    def _note(self, wanted: ClipTask, error: DivergedError) -> None:
        """Leave a clip out; without the clips of the first row no other has a meaning.

        Raises:
            DivergedError: It is the first row.
        """
        self.diverged[wanted.clip.key] = error.place
        if self.task.first:
            raise self._no_clips() from error

    def _no_clips(self) -> DivergedError:
        places = ", ".join(dict.fromkeys(self.diverged.values()))
        count = f"{len(self.diverged)} of {len(self.task.clips)} clips"
        rest = "; the others were not made" if self.task.first else ""
        return DivergedError(places, self.task.gen.dtype, f"{count} diverged at {places}{rest}")

    def _score(self) -> None:
        report = self.events.progress("score")
        whole = [c for c in self.task.clips if c.clip.key not in self.diverged]
        for i, wanted in enumerate(whole):
            report(i / len(whole), f"clip {i + 1}")
            self._score_clip(wanted)

    def _score_clip(self, wanted: ClipTask) -> None:
        from harness.score.registry import load_scorer

        clip = self.store.find("clip", wanted.clip.key)
        if clip is None:
            raise HarnessError("a clip vanished while it was scored", "run the same command again")
        reference = self.store.find("clip", wanted.reference) if wanted.reference else None
        for scorer in (load_scorer(name) for name in self.task.scorers):
            # Without its reference a paired value cannot be made; the run reports it as missing.
            if scorer.paired and reference is None:
                continue
            try:
                scorer.make(self.store, wanted.prompt, clip, reference)
            except HarnessError:
                raise
            except Exception as error:
                if is_disk_full(error) or isinstance(error, MemoryError) or _is_torch_oom(error):
                    raise
                # A scorer's own defect costs its value and nothing else.
                traceback.print_exc()
                detail = f"{scorer.name}: {failure(error)['detail']}"
                keys = [scorer.key(wanted.prompt, clip, reference).key]
                self.events.send("trouble", keys=keys, status=Status.ERROR, detail=detail)


def _about(task: CellTask) -> dict[str, str]:
    return {"name": task.model.name, "repo": task.model.repo}


def failure(error: BaseException) -> dict[str, Any]:
    """What an exception means for the row, in one line."""
    if isinstance(error, HarnessError):
        if isinstance(error, DivergedError):
            # The hint is part of the reason: it stands under the table.
            detail = f"{error.message}; {error.hint}"
            return {"status": Status.DIVERGED, "detail": detail}
        unsupported = isinstance(error, UnsupportedError)
        status = Status.UNSUPPORTED if unsupported else Status.ERROR
        return {"status": status, "detail": error.message, "hint": error.hint}
    lines = str(error).strip().splitlines()
    detail = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if is_disk_full(error):
        return {"status": Status.ERROR, "detail": detail, "disk_full": True}
    if isinstance(error, MemoryError) or _is_torch_oom(error):
        return {"status": Status.OOM, "detail": detail}
    return {"status": Status.ERROR, "detail": detail}


def is_disk_full(error: BaseException) -> bool:
    """Whether the cause is a full disk or an exhausted quota; safetensors says so only in words."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    return "No space left on device" in str(error)


def _is_torch_oom(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    # The CPU allocator has no exception class of its own.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def main(arguments: list[str]) -> int:
    """Run the job in the named file; returns the exit code."""
    # Whatever a library prints must not land between the events.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    events = Events(out=out)
    job = Job.from_json(Path(arguments[0]).read_text(encoding="utf-8"))
    die_with(job.parent)
    # What measuring times must have no hook in it; a process that computes then counts as alive.
    pulse = Pulse(lambda: events.send(ALIVE), computing=isinstance(job.task, MeasureTask))
    try:
        with pulse.running():
            run_job(job, events, pulse)
    except Exception as error:
        traceback.print_exc()
        events.send("failed", **failure(error))
        return 1
    events.send("done")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
