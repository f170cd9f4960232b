from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from harness.run.executors import local
from harness.run.executors.local import LocalExecutor
from harness.spec import Status
from harness.store.keys import Keyed
from harness.task import Ended, Event, JudgeTask, MeasureTask
from tests.test_task import GEN, MODEL

if TYPE_CHECKING:
    from pathlib import Path

TASK = MeasureTask(
    id="task",
    model=MODEL,
    gen=GEN,
    rows=(),
    measure=Keyed(key="k", inputs={}),
    turns=1,
    steps=1,
)


def executor(tmp_path: Path, script: str, stall_s: float = 60.0) -> LocalExecutor:
    return LocalExecutor(
        store=tmp_path / "store",
        device="cpu",
        stall_s=stall_s,
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


def test_a_silent_worker_is_killed(tmp_path: Path) -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    _, ended = outcome(executor(tmp_path, script, stall_s=0.5), tmp_path)
    assert ended.status is Status.TIMEOUT
    assert ended.detail.startswith("ended: silent for 0.5 s ([execution] stall_s)")


def judge(tmp_path: Path, body: str) -> JudgeTask:
    """A task whose interpreter is a script of this test."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{body}' \"$@\"\n")
    program.chmod(0o755)
    return JudgeTask(id="judge--1", python=program, folder=tmp_path / "weights", job={"clips": []})


def ended_of(found: LocalExecutor, task: JudgeTask, log: Path) -> tuple[list[Event], Ended]:
    found.start(task, log=log, threads=1)
    events: list[Event] = []
    while True:
        for one in found.poll(0.1):
            if isinstance(one, Ended):
                found.stop()
                return events, one
            events.append(one)


def test_a_judge_is_another_interpreter_with_surroundings_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    body = (
        "import json, os, sys; job = json.load(open(sys.argv[4])); "
        'names = ["PYTHONPATH", "OMP_NUM_THREADS", "TRANSFORMERS_OFFLINE"]; '
        "facts = {n: os.environ[n] for n in names}; "
        'print(json.dumps({"event": "seen", "argv": sys.argv[1:4], **job, **facts})); '
        'print(json.dumps({"event": "done"}))'
    )
    (seen,), ended = ended_of(executor(tmp_path, ""), judge(tmp_path, body), tmp_path / "log")
    assert ended.status is Status.OK
    assert seen.facts["argv"] == ["-P", "-m", "vbench_worker"]
    assert (seen.facts["threads"], seen.facts["parent"]) == (1, os.getpid())
    assert seen.facts["PYTHONPATH"].endswith("foreign")
    assert (seen.facts["OMP_NUM_THREADS"], seen.facts["TRANSFORMERS_OFFLINE"]) == ("1", "1")
    assert (tmp_path / "weights").is_dir()


def test_a_judge_has_its_time_anew_with_each_word(tmp_path: Path) -> None:
    body = (
        "import time\nfor _ in range(6):\n"
        '    print("{\\"event\\": \\"score\\"}", flush=True); time.sleep(0.4)\n'
        "time.sleep(60)"
    )
    found = executor(tmp_path, "", stall_s=1.5)
    events, ended = ended_of(found, judge(tmp_path, body), tmp_path / "log")
    assert len(events) == 6
    assert ended.status is Status.TIMEOUT
    assert ended.seconds > 2.4


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
        "import sys, time; from harness.store.lifeline import die_with\n"
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


def test_a_worker_that_says_something_may_work_longer_than_it_may_be_silent(
    tmp_path: Path,
) -> None:
    script = (
        "import time\nfor _ in range(8):\n"
        '    print(\'{"event": "alive"}\', flush=True); time.sleep(0.3)\n'
        'print(\'{"event": "done"}\')'
    )
    events, ended = outcome(executor(tmp_path, script, stall_s=1.5), tmp_path)
    assert ended.status is Status.OK
    assert ended.seconds > 1.5
    assert events == []  # a sign of life is no news


def test_a_stall_names_a_lock_that_a_killed_compile_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / local._EXTENSIONS / "cpp" / "build" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    monkeypatch.setattr(local, "distribution", lambda name: Installed(tmp_path))
    _, ended = outcome(executor(tmp_path, "import time; time.sleep(60)", stall_s=0.5), tmp_path)
    assert f"remove '{lock}'" in ended.detail
    lock.unlink()
    _, ended = outcome(executor(tmp_path, "import time; time.sleep(60)", stall_s=0.5), tmp_path)
    assert "lock" not in ended.detail


class Installed:
    """A distribution whose files lie in a folder of this test."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def locate_file(self, name: str) -> Path:
        return self.root / name


def test_a_task_computes_where_it_is_told_to(tmp_path: Path) -> None:
    script = (
        "import json, sys; job = json.load(open(sys.argv[1]))\n"
        "print(json.dumps({'event': 'seen', 'device': job['device']}))\n"
        "print(json.dumps({'event': 'done'}))"
    )
    found = executor(tmp_path, script)
    for device, expected in (("", "cpu"), ("cuda:1", "cuda:1")):
        found.start(TASK, log=tmp_path / "log", threads=1, device=device)
        events: list[Event | Ended] = []
        while not any(isinstance(one, Ended) for one in events):
            events += found.poll(0.1)
        assert isinstance(events[0], Event)
        assert events[0].facts["device"] == expected
    found.stop()
