from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from harness.executors.base import Ended, Event
from harness.executors.local import LocalExecutor
from harness.spec import Status
from harness.task import Keyed, MeasureTask
from tests.test_task import GEN, MODEL

if TYPE_CHECKING:
    from pathlib import Path

TASK = MeasureTask(
    id="task",
    model=MODEL,
    gen=GEN,
    rows=(),
    measure=Keyed(key="k", inputs={}),
    rounds=1,
    clips=1,
)


def executor(tmp_path: Path, script: str, timeout_s: float = 60.0) -> LocalExecutor:
    return LocalExecutor(
        store=tmp_path / "store",
        device="cpu",
        timeout_s=timeout_s,
        folder=tmp_path / "jobs",
        command=(sys.executable, "-c", script),
    )


def outcome(found: LocalExecutor, tmp_path: Path) -> tuple[list[Event], Ended]:
    found.start(TASK, log=tmp_path / "log", threads=3)
    events: list[Event] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for one in found.poll(0.1):
            if isinstance(one, Ended):
                found.stop()
                return events, one
            events.append(one)
    raise TimeoutError("the worker did not end")


def test_events_come_in_order_and_done_is_ok(tmp_path: Path) -> None:
    script = (
        "import sys, os\n"
        'print(\'{"event": "progress", "n": 1}\')\n'
        'print(\'{"event": "clip", "n": %s}\' % os.environ[\'OMP_NUM_THREADS\'])\n'
        'print(\'{"event": "done"}\')\n'
        "print('noise', file=sys.stderr)"
    )
    events, ended = outcome(executor(tmp_path, script), tmp_path)
    assert [(e.name, e.facts["n"]) for e in events] == [("progress", 1), ("clip", 3)]
    assert ended.status is Status.OK
    assert (tmp_path / "log").read_text() == "noise\n"


@pytest.mark.parametrize(
    ("script", "status", "detail"),
    [
        ("pass", Status.ERROR, "exit code 0: it printed nothing"),
        ("raise SystemExit('bad luck')", Status.ERROR, "exit code 1: bad luck"),
        ("import os; os.kill(os.getpid(), 9)", Status.KILLED, "killed (SIGKILL)"),
        ("import os; os.kill(os.getpid(), 11)", Status.ERROR, "crashed (SIGSEGV)"),
        (
            'print(\'{"event": "failed", "status": "oom", "detail": "too big"}\'); exit(1)',
            Status.OOM,
            "too big",
        ),
    ],
)
def test_every_end_has_a_status_and_a_line(
    tmp_path: Path, script: str, status: Status, detail: str
) -> None:
    _, ended = outcome(executor(tmp_path, script), tmp_path)
    assert ended.status is status
    assert detail in ended.detail


def test_a_worker_over_its_time_is_killed(tmp_path: Path) -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    _, ended = outcome(executor(tmp_path, script, timeout_s=0.5), tmp_path)
    assert (ended.status, ended.detail) == (Status.TIMEOUT, "stopped after 0.5 s")


def test_stopping_ends_a_worker_that_ignores_the_polite_signal(tmp_path: Path) -> None:
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        'print(\'{"event": "up"}\', flush=True); time.sleep(60)'
    )
    found = executor(tmp_path, script)
    found.start(TASK, log=tmp_path / "log", threads=1)
    while not found.poll(0.2):
        pass
    children = psutil.Process().children()
    found.stop()
    assert not any(child.is_running() for child in children)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread watches, within a second")
def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    worker = (
        "import sys, time; from harness.executors.lifeline import die_with\n"
        "die_with(int(sys.argv[1])); print('up', flush=True); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys\n"
        f"p = subprocess.Popen([sys.executable, '-c', {worker!r}, str(os.getpid())],"
        " stdout=subprocess.PIPE)\n"
        "p.stdout.readline(); print(p.pid, flush=True); p.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    assert process.stdout is not None
    orphan = psutil.Process(int(process.stdout.readline()))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    gone, alive = psutil.wait_procs([orphan], timeout=10)
    assert not alive or orphan.status() == psutil.STATUS_ZOMBIE
    del gone, tmp_path
