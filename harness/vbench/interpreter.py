"""Asking another interpreter: what it is, where it imports from, what our worker finds in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from harness.store.keys import file_digest

FOREIGN = Path(__file__).with_name("foreign")
WORKER = ("-P", "-m", "vbench_worker")
PYTHON_MIN = (3, 11)  # the first with `-P`

_ANSWER_S = 300.0  # importing torch from a cold network disk
_PROBE = "import json, sys; print(json.dumps({'version': sys.version_info[:3], 'path': sys.path}))"
# What belongs to the generator's interpreter and must not reach another one.
_OURS = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__")


class UnusableError(Exception):
    """Why an interpreter cannot do what it is asked to, one line."""


def worker_environment() -> dict[str, str]:
    """Variables for a process of the scoring interpreter: it sees our worker, nothing else of ours.

    ``PYTHONNOUSERSITE`` is left as it is: the package may well be installed for the user.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    return kept | {"PYTHONPATH": str(FOREIGN)}


def worker_sources() -> dict[str, str]:
    """Digests of our worker's files."""
    files = sorted(FOREIGN.rglob("*.py"))
    return {str(path.relative_to(FOREIGN)): file_digest(path) for path in files}


def located(python: str) -> Path:
    """The interpreter behind a path or a name on the search path; links are kept.

    Raises:
        UnusableError: There is none.
    """
    found = shutil.which(Path(python).expanduser())
    if found is None:
        raise UnusableError("there is no such program")
    return Path(found).absolute()  # resolving the link would leave the virtual environment


def probe(python: Path) -> tuple[tuple[int, ...], list[str]]:
    """Version of an interpreter and the places that it imports from, our worker's left out.

    Raises:
        UnusableError: It does not answer.
    """
    found = parsed(_last(answer(python, "-c", _PROBE)))
    places = [place for place in found["path"] if place and place != str(FOREIGN)]
    return tuple(found["version"]), places


def worker_facts(python: Path) -> dict[str, Any]:
    """What our worker finds in an interpreter: ``versions``, ``full_info``, ``cuda``, ``problems``.

    Raises:
        UnusableError: It does not answer.
    """
    return parsed(_last(answer(python, *WORKER, "--facts")))


def answer(python: Path, *arguments: str, timeout_s: float = _ANSWER_S) -> list[str]:
    """Lines that a command of an interpreter prints.

    Raises:
        UnusableError: It could not be started, failed or took too long.
    """
    try:
        done = subprocess.run(
            [str(python), *arguments],
            capture_output=True,
            text=True,
            env=worker_environment(),
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except OSError as cause:
        raise UnusableError(f"it cannot be started ({cause.strerror})") from cause
    except subprocess.TimeoutExpired as cause:
        raise UnusableError(f"no answer within {timeout_s:g} s") from cause
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise UnusableError(said[-1] if said else f"exit code {done.returncode}")
    return [line for line in done.stdout.splitlines() if line.strip()]


def parsed(line: str) -> dict[str, Any]:
    """A line that is a JSON object.

    Raises:
        UnusableError: It is none.
    """
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    raise UnusableError(f"unexpected answer: {line[:80]}")


def _last(lines: list[str]) -> str:
    if not lines:
        raise UnusableError("it printed nothing")
    return lines[-1]
