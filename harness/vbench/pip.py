"""pip in another environment: with a lock, the user's own index, a log and a bar."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.vbench.interpreter import worker_environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Progress = Callable[[float, str], None]

_POLL_S = 0.2
_STOP_GRACE_S = 5.0
# Shares of the bar: pip first looks up and downloads every package, then writes them all.
_COLLECTING, _INSTALLING = 0.03, 0.6
_SEEN = ("Collecting ", "Processing ", "Requirement already satisfied: ")
# Some packages come as sources; what builds them is locked too.
_BUILDERS = ("setuptools", "wheel")
# Settings of a user's pip that would lead the packages elsewhere.
_ELSEWHERE = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_DRY_RUN")


def canonical(name: str) -> str:
    """A package's name without the spellings that mean the same (PEP 503)."""
    return name.lower().replace("_", "-").replace(".", "-")


def pins(lock: Path) -> dict[str, str]:
    """Locked version by package, names in their canonical form."""
    lines = [line.strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    pairs = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): version for name, _, version in pairs}


def install(python: Path, lock: Path, site: Path, progress: Progress) -> None:
    """Install a lock into a virtual environment.

    Args:
        python: The environment's interpreter, ``<environment>/bin/python``.
        lock: Pinned versions, as pip reads them.
        site: The environment's folder of packages.
        progress: Called with the share that is done and what is being done.

    Raises:
        HarnessError: pip failed.
    """
    command = [str(python), "-m", "pip", "install", "--progress-bar", "off"]
    command += ["--disable-pip-version-check", "--no-input", "-r", str(lock)]
    target, wanted = python.parent.parent, pins(lock)
    total, before = len(wanted), -1
    builders = target / "builders.txt"
    builders.write_text("".join(f"{n}=={wanted[n]}\n" for n in _BUILDERS if n in wanted))
    # The first name is that of pip before 25.3.
    locked = {"PIP_CONSTRAINT": str(builders), "PIP_BUILD_CONSTRAINT": str(builders)}

    def tick(lines: list[str]) -> None:
        nonlocal before
        installed = sum(1 for _ in site.glob("*.dist-info/RECORD"))
        writing = next((line for line in lines if line.startswith("Installing collected ")), None)
        if writing is None:
            progress(*_collecting(lines, total))
            return
        before = installed if before < 0 else before
        new = writing.count(",") + 1
        done = max(0, min(new, installed - before))
        share = _INSTALLING + (1 - _INSTALLING) * done / new
        progress(share, f"installing, {done} of {new} packages")

    what = "pip could not install the scoring environment"
    run(command, target, what=what, defaults=locked, tick=tick)


def _collecting(lines: list[str], total: int) -> tuple[float, str]:
    """How far pip is with looking up and downloading, from what it has printed."""
    seen = min(total, len({line for line in lines if line.startswith(_SEEN)}))
    share = _COLLECTING + (_INSTALLING - _COLLECTING) * seen / total
    last = lines[-1].strip() if lines else ""
    file = last.removeprefix("Downloading ").rpartition("/")[2]
    now_at = f": {file}" if last.startswith("Downloading ") else ""
    return share, f"collecting, {seen} of {total} packages{now_at}"


def run(
    command: list[str],
    target: Path,
    *,
    what: str,
    defaults: dict[str, str] | None = None,
    tick: Callable[[list[str]], None] = lambda _: None,
) -> None:
    """Run a step of a build, its output in a log beside the environment.

    It has a temporary folder there too: the system's may be too small for a wheel of torch.

    Args:
        command: The step.
        target: The environment; ``<target>.log`` and ``<target>.tmp`` are used.
        what: What is wrong when it fails.
        defaults: Variables that the user's own override.
        tick: Called with the lines that it has printed so far, a few times a second.

    Raises:
        HarnessError: It failed; the first error that it printed is in the message.
    """
    log, scratch = target.with_suffix(".log"), target.with_suffix(".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    kept = {k: v for k, v in worker_environment().items() if k not in _ELSEWHERE}
    del kept["PYTHONPATH"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=(defaults or {}) | kept | {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"},
            close_fds=False,  # descriptors that were made inheritable, such as a lock, go with it
            start_new_session=True,  # Ctrl-C is for us; we end it
        )
    try:
        while process.poll() is None:
            tick(_lines(log))
            time.sleep(_POLL_S)
    finally:
        _end(process)
        shutil.rmtree(scratch, ignore_errors=True)
    if process.returncode:
        said = [line for line in _lines(log) if line.lower().startswith("error")]
        said = said or _lines(log)[-1:]
        reason = said[0].strip() if said else f"exit code {process.returncode}"
        raise HarnessError(
            f"{what}: {reason}", f"see {log}; the same command goes on where this one stopped"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a step that is still running, with what it has started."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _lines(log: Path) -> list[str]:
    return [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
