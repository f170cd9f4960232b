"""Building the scoring environment: a virtual environment and the locked versions, by pip.

Everything is done in the place where it will be used, since a virtual environment cannot be moved.
A marker is written last; what has none is never used, and the next build goes on from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError, InfraError, UsageError
from harness.store.durable import replace_file
from harness.store.keys import file_digest
from harness.store.store import now
from harness.vbench import pip
from harness.vbench.environment import MARKER, Environment, ask, folder, python_of, registration
from harness.vbench.interpreter import UnusableError, answer, located, probe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.vbench.pip import Progress

LOCK = Path(__file__).with_name("lock.txt")
PYTHON = (3, 11)  # what the versions of the lock have builds for
SCHEMA = 1


def is_built() -> bool:
    """Whether the environment is complete and holds the versions of this lock."""
    marker = folder() / MARKER
    if not marker.is_file():
        return False
    try:
        return bool(json.loads(marker.read_text(encoding="utf-8"))["lock"] == file_digest(LOCK))
    except (ValueError, KeyError, TypeError):
        return False  # damaged: what it says does not count


def base_interpreter(python: str | None) -> Path:
    """The interpreter to build with: the given one, else the first of the right version.

    Raises:
        UsageError: The given one is none or has another version.
        HarnessError: None is given and there is none.
    """
    wanted = ".".join(map(str, PYTHON))
    if python is not None:
        try:
            base = located(python)
            version, _ = probe(base)
        except UnusableError as cause:
            raise UsageError(
                f"interpreter '{python}' cannot be used: {cause}", f"name a Python {wanted}"
            ) from cause
        if version[:2] != PYTHON:
            raise UsageError(
                f"interpreter '{python}' is Python {'.'.join(map(str, version))}: "
                f"the locked versions have no builds for it",
                f"name a Python {wanted}",
            )
        return base
    for name in (sys.executable, f"python{wanted}"):
        with contextlib.suppress(UnusableError):
            base = located(name)
            if probe(base)[0][:2] == PYTHON:
                return base
    raise HarnessError(
        f"the scoring environment needs Python {wanted}, and there is no python{wanted} here",
        "install one and give it with --python, or give an environment that has vbench with --use",
    )


def build(*, python: str | None, force: bool, progress: Progress) -> Environment:
    """Build the scoring environment, or go on with one that was interrupted.

    A registered interpreter is forgotten: what was asked for last is what counts.

    Args:
        python: Interpreter to build with; None for the first that fits.
        force: Remove what is there first.
        progress: Called with the share that is done and what is being done.

    Raises:
        HarnessError: It could not be built; the message names the log.
    """
    target = folder()
    with _alone(target):
        if force or not is_built():
            base = base_interpreter(python)
            if force:
                shutil.rmtree(target, ignore_errors=True)
            (target / MARKER).unlink(missing_ok=True)
            progress(0.0, f"virtual environment with {base}")
            _make(base, target, again=python is not None)
            _forget_unfinished(_site(target))
            pip.install(python_of(target), LOCK, _site(target), progress)
            _compare(target)
            found = ask(python_of(target))
            facts = {"schema": SCHEMA, "lock": file_digest(LOCK), "base": str(base), "at": now()}
            replace_file(target / MARKER, json.dumps(facts, sort_keys=True) + "\n")
        else:
            found = ask(python_of(target))
        registration().unlink(missing_ok=True)
        progress(1.0, "done")
    return found


def size_bytes(environment: Path) -> int:
    """What the files under a folder take; links are not followed."""
    return sum(p.lstat().st_size for p in environment.rglob("*") if not p.is_dir())


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold off a second build of the same environment, in whatever process.

    pip inherits the lock: should this process be killed, it holds until pip has ended too.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise InfraError(
                f"another process is building '{target}'", "wait until it has ended"
            ) from cause
        os.set_inheritable(file.fileno(), True)
        yield


def _make(base: Path, target: Path, *, again: bool) -> None:
    """Make the virtual environment unless a usable one is left from an interrupted build.

    Args:
        base: Interpreter to make it with.
        target: Where.
        again: Whether one that was made with another interpreter is made anew.
    """
    python = python_of(target)
    if _has_pip(python) and not (again and python.resolve() != base.resolve()):
        return
    command = [str(base), "-m", "venv", "--clear", str(target)]
    pip.run(command, target, what="the virtual environment cannot be made")


def _has_pip(python: Path) -> bool:
    try:
        answer(python, "-m", "pip", "--version")
    except UnusableError:
        return False
    return True


def _site(target: Path) -> Path:
    """Folder of the environment's packages."""
    return target / "lib" / f"python{'.'.join(map(str, PYTHON))}" / "site-packages"


def _forget_unfinished(site: Path) -> None:
    """Make pip install again what it had begun to: it writes a package's list of files last."""
    for metadata in site.glob("*.dist-info"):
        if not (metadata / "RECORD").is_file():
            shutil.rmtree(metadata)


def _compare(target: Path) -> None:
    """Hold what is installed against the lock.

    Raises:
        HarnessError: A package is missing or has another version.
    """
    names = [path.name.removesuffix(".dist-info") for path in _site(target).glob("*.dist-info")]
    installed = {pip.canonical(n): v for n, _, v in (name.partition("-") for name in names)}
    wrong = [
        f"{name} {installed.get(name, 'missing')} instead of {version}"
        for name, version in pip.pins(LOCK).items()
        if installed.get(name, "").partition("+")[0] != version  # `+cpu`: a build, not a version
    ]
    if wrong:
        raise HarnessError(
            f"the scoring environment is not what was locked: {', '.join(wrong[:3])}",
            "harness fetch vbench --force",
        )
