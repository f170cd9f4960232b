"""Workers as processes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO, TYPE_CHECKING

from harness.models.offload import NONE
from harness.spec import Status
from harness.task import ALIVE, Ended, Event, Job, JudgeTask, Task
from harness.vbench.interpreter import WORKER as JUDGE
from harness.vbench.interpreter import worker_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

WORKER = (sys.executable, "-P", "-m", "harness.run.worker")
STOP_GRACE_S = 2.0
_EXTENSIONS = "optimum/quanto/library/extensions"  # where optimum-quanto compiles at first use
_OOM_EVENTS = Path("/sys/fs/cgroup/memory.events")
_SIGNALS = {s.value: s.name for s in signal.Signals}


@dataclass(kw_only=True)
class _Process:
    task: str
    popen: subprocess.Popen[bytes]
    job: Path
    log: Path
    started: float
    oom_kills: int
    since: float  # when it last said something
    buffer: bytes = b""
    last: dict[str, object] = field(default_factory=dict)
    stalled: bool = False


class LocalExecutor:
    """Starts ``python -P -m harness.run.worker`` for each task, and for judging the other worker.

    Args:
        store: Root of the store.
        device: What torch is told, where a task is started without a device of its own.
        stall_s: Longest that a worker may be silent; each word of it gives it that time anew.
        folder: Where job files are written.
        offload: What of a model stays in the host's memory.
        command: The worker's command, for tests.
    """

    def __init__(
        self,
        *,
        store: Path,
        device: str,
        stall_s: float,
        folder: Path,
        offload: str = NONE,
        command: tuple[str, ...] = WORKER,
    ) -> None:
        self.store = store
        self.device = device
        self.stall_s = stall_s
        self.folder = folder
        self.offload = offload
        self.command = command
        self._running: dict[str, _Process] = {}
        self._selector = selectors.DefaultSelector()

    def start(self, task: Task, *, log: Path, threads: int, device: str = "") -> None:
        """Start a worker in a session of its own, so that Ctrl-C reaches the run alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Two runs may share a folder, and a worker believes what its job says about its parent.
        path = self.folder / f"{task.id}.{os.getpid()}.json"
        path.write_text(self._job(task, threads, device or self.device), encoding="utf-8")
        log.parent.mkdir(parents=True, exist_ok=True)
        command, folder, environment = self.command, None, _environment(threads)
        if isinstance(task, JudgeTask):
            command, folder = (str(task.python), *JUDGE), task.folder
            environment = _judging(threads, folder)
            folder.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            popen = subprocess.Popen(
                [*command, str(path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
        started = time.monotonic()
        process = _Process(
            task=task.id,
            popen=popen,
            job=path,
            log=log,
            started=started,
            oom_kills=_oom_kills(),
            since=started,
        )
        self._running[task.id] = process
        assert popen.stdout is not None
        os.set_blocking(popen.stdout.fileno(), False)
        self._selector.register(popen.stdout, selectors.EVENT_READ, process)

    def poll(self, timeout_s: float) -> list[Event | Ended]:
        """What happened, waiting at most so long for something to happen."""
        found: list[Event | Ended] = []
        for key, _ in self._selector.select(timeout_s):
            process: _Process = key.data
            found += self._read(process, key.fileobj)  # type: ignore[arg-type]
        for process in list(self._running.values()):
            if time.monotonic() - process.since > self.stall_s and not process.stalled:
                process.stalled = True
                _signal(process, signal.SIGKILL)
            if process.popen.poll() is not None:
                found += self._end(process)
        return found

    def _job(self, task: Task, threads: int, device: str) -> str:
        parent = os.getpid()
        if isinstance(task, JudgeTask):
            return json.dumps({**task.job, "threads": threads, "parent": parent}) + "\n"
        return Job(
            task=task, store=self.store, device=device, threads=threads, parent=parent,
            offload=self.offload,
        ).to_json()  # fmt: skip

    def stop(self) -> None:
        """End every worker: politely, then surely."""
        for process in self._running.values():
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_S
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.0, deadline - time.monotonic()))
            _signal(process, signal.SIGKILL)
            process.popen.wait()
            if process.popen.stdout is not None:
                process.popen.stdout.close()
            process.job.unlink(missing_ok=True)
        self._running.clear()
        self._selector.close()

    def _read(self, process: _Process, pipe: IO[bytes]) -> list[Event | Ended]:
        found: list[Event | Ended] = []
        while chunk := pipe.read():
            process.buffer += chunk
        *lines, process.buffer = process.buffer.split(b"\n")
        if lines:
            process.since = time.monotonic()
        for line in lines:
            facts = json.loads(line)
            name = facts.pop("event")
            if name in ("done", "failed"):
                process.last = {"event": name, **facts}
            elif name != ALIVE:
                found.append(Event(task=process.task, name=name, facts=facts))
        return found

    def _end(self, process: _Process) -> list[Event | Ended]:
        pipe = process.popen.stdout
        assert pipe is not None
        found = self._read(process, pipe)
        self._selector.unregister(pipe)
        pipe.close()
        del self._running[process.task]
        process.job.unlink(missing_ok=True)
        status, detail = self._verdict(process)
        ended = Ended(
            task=process.task,
            status=status,
            detail=detail,
            disk_full=bool(process.last.get("disk_full")),
            log=process.log,
            seconds=time.monotonic() - process.started,
        )
        return [*found, ended]

    def _verdict(self, process: _Process) -> tuple[Status, str]:
        code = process.popen.returncode
        if process.stalled:
            said = f"ended: silent for {self.stall_s:g} s ([execution] stall_s)"
            return Status.TIMEOUT, f"{said}{_stale_lock()}"
        if code == 0 and process.last.get("event") == "done":
            return Status.OK, ""
        if process.last.get("event") == "failed":
            return Status(str(process.last["status"])), str(process.last["detail"])
        if code == -signal.SIGKILL:
            if _oom_kills() > process.oom_kills:
                return Status.OOM, "killed by the kernel: out of memory"
            return Status.KILLED, "killed (SIGKILL); the machine may have run out of memory"
        if code < 0:
            return Status.ERROR, f"crashed ({_SIGNALS.get(-code, -code)})"
        return Status.ERROR, f"exit code {code}: {_last_line(process.log)}"


def _stale_lock() -> str:
    """A lock of a compile that was killed, for which every later process waits silently."""
    try:
        root = distribution("optimum-quanto").locate_file(_EXTENSIONS)
    except PackageNotFoundError:
        return ""
    locks = sorted(Path(str(root)).glob("*/build/lock"))
    if not locks:
        return ""
    return f"; if nothing else compiles, remove '{locks[0]}', left by a compile that was ended"


def _environment(threads: int, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    count = str(threads)
    return {
        **base,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        # Spinning threads wait for each other's time slice when anything else runs: steps 40 times
        # as long were seen on two busy cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS is not deterministic
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _judging(threads: int, weights: Path) -> dict[str, str]:
    """Environment of a judge: its own libraries, weights from one folder, no way to the network."""
    return {
        **_environment(threads, worker_environment()),
        "VBENCH_CACHE_DIR": str(weights),
        "TORCH_HOME": str(weights / "torch"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


def _signal(process: _Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.popen.pid, number)


def _oom_kills() -> int:
    """Kills by the kernel for lack of memory in this control group; 0 where it does not say."""
    try:
        lines = _OOM_EVENTS.read_text().splitlines()
    except OSError:  # no cgroup v2
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def _last_line(log: Path) -> str:
    lines = [s for s in log.read_text(encoding="utf-8", errors="replace").splitlines() if s.strip()]
    return lines[-1].strip() if lines else "it printed nothing"
