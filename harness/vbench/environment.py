"""The scoring environment: which interpreter holds the official package, and what else it holds.

Nothing is imported from it. It is asked once, in a process of its own, and the answer is remembered
in ``$HARNESS_HOME/facts`` until the interpreter changes, or a folder that it imports from, or the
package's list of prompts, or our worker.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, UsageError
from harness.store.durable import replace_file
from harness.store.keys import digest, file_digest
from harness.store.provenance import cuda_names
from harness.store.store import home
from harness.vbench.dimensions import VBENCH_VERSION
from harness.vbench.interpreter import FOREIGN as FOREIGN
from harness.vbench.interpreter import (
    PYTHON_MIN,
    WORKER,
    UnusableError,
    answer,
    located,
    parsed,
    probe,
    worker_facts,
    worker_sources,
)
from harness.vbench.interpreter import worker_environment as worker_environment

MARKER = "built.json"
REMEDY = "harness fetch vbench"


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """An interpreter that can score.

    Attributes:
        python: The interpreter; a link into a virtual environment stays a link.
        versions: Version by package (``vbench``, ``torch``, ...), empty where it is not installed.
        full_info: The installed package's own list of prompts.
        full_info_sha256: Its digest.
        cuda: Whether its torch can use a CUDA device.
        problems: What it lacks or what was never tested, one line each.
    """

    python: Path
    versions: dict[str, str]
    full_info: Path
    full_info_sha256: str
    cuda: bool
    problems: tuple[str, ...]

    @property
    def detector(self) -> bool:
        """Whether detectron2 is there, which four dimensions need."""
        return bool(self.versions.get("detectron2"))

    @property
    def line(self) -> str:
        """The versions that a reader of scores asks for, in one line."""
        named = ("vbench", "torch", "torchvision", "transformers", "numpy")
        return ", ".join(f"{name} {self.versions.get(name) or 'missing'}" for name in named)


def folder() -> Path:
    """Where ``harness fetch vbench`` builds."""
    return home() / "envs" / "vbench"


def registration() -> Path:
    """The file that names an interpreter given with ``harness fetch vbench --use``."""
    return home() / "envs" / "vbench.json"


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / "bin" / "python"


def missing_line() -> str:
    """Why there is no VBench here, and the command that changes it."""
    return f"vbench is not installed: {REMEDY}"


def find(python: str | None = None) -> Environment | None:
    """The scoring environment: the given one, else the registered one, else the one built here.

    Args:
        python: An interpreter, as ``[envs.vbench] python`` names it.

    Returns:
        None where none is given, registered or completely built.

    Raises:
        UsageError: The given interpreter cannot score.
        HarnessError: The registered or the built one no longer can.
    """
    if python is not None:
        try:
            return _ask(located(python))
        except UnusableError as cause:
            raise UsageError(
                f"interpreter '{python}' cannot score: {cause}",
                f"name one that has vbench {VBENCH_VERSION}, or build it: {REMEDY}",
            ) from cause
    found = registered() or _built()
    if found is None:
        return None
    try:
        return _ask(found)
    except UnusableError as cause:
        raise HarnessError(
            f"scoring interpreter '{found}' no longer works: {cause}", f"{REMEDY} --force"
        ) from cause


def register(python: str) -> Environment:
    """Score with an existing interpreter from now on.

    Raises:
        UsageError: It cannot score.
    """
    found = find(python)
    assert found is not None  # a given interpreter is found or refused
    path = registration()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps({"python": str(found.python)}) + "\n")
    return found


def registered() -> Path | None:
    """The interpreter given with ``--use``.

    Raises:
        HarnessError: The file that names it cannot be read.
    """
    path = registration()
    if not path.is_file():
        return None
    try:
        return Path(json.loads(path.read_text(encoding="utf-8"))["python"])
    except (ValueError, KeyError, TypeError) as cause:
        raise HarnessError(f"'{path}' cannot be read", "delete it and try again") from cause


def ask(python: Path) -> Environment:
    """What an interpreter holds, asked anew: for one that has just been built.

    Raises:
        HarnessError: It cannot score.
    """
    try:
        return _ask(python, remembered=False)
    except UnusableError as cause:
        raise HarnessError(f"'{python}' cannot score: {cause}", f"{REMEDY} --force") from cause


def check(python: Path, *, timeout_s: float) -> list[dict[str, Any]]:
    """Apply every compatibility measure and import every dimension, in the interpreter itself.

    Returns:
        ``kind`` (``compat`` or ``dimension``), ``name``, ``ok`` and ``detail`` of each.

    Raises:
        HarnessError: The worker gave no answer.
    """
    try:
        return [parsed(line) for line in answer(python, *WORKER, "--check", timeout_s=timeout_s)]
    except UnusableError as cause:
        raise HarnessError(f"'{python}' cannot be checked: {cause}", f"{REMEDY} --force") from cause


def _built() -> Path | None:
    # The marker is written last: without it the environment is half built.
    return python_of(folder()) if (folder() / MARKER).is_file() else None


def _ask(python: Path, *, remembered: bool = True) -> Environment:
    """Facts of an interpreter, from memory where nothing has changed.

    Raises:
        UnusableError: It does not run, is too old, or has no vbench.
    """
    if not python.is_file():
        raise UnusableError("there is no such file")
    memory = home() / "facts" / f"vbench-{digest(_question(python))[:32]}.json"
    if remembered and (known := _recall(memory)) is not None:
        return known
    version, places = probe(python)
    if version < PYTHON_MIN:
        given, needed = (".".join(map(str, v)) for v in (version, PYTHON_MIN))
        raise UnusableError(f"it is Python {given}, the worker needs {needed} or newer")
    environment = _environment(python, worker_facts(python))
    _remember(memory, environment, [*places, str(environment.full_info)])
    return environment


def _environment(python: Path, facts: dict[str, Any]) -> Environment:
    versions: dict[str, str] = facts["versions"]
    if not versions.get("vbench"):
        raise UnusableError("it has no package 'vbench'")
    if not facts["full_info"] or not Path(facts["full_info"]).is_file():
        raise UnusableError("its vbench has no VBench_full_info.json")
    problems = list(facts["problems"])
    if versions["vbench"] != VBENCH_VERSION:
        problems.append(f"vbench is {versions['vbench']}; only {VBENCH_VERSION} was tested")
    return Environment(
        python=python,
        versions=versions,
        full_info=Path(facts["full_info"]),
        full_info_sha256=file_digest(Path(facts["full_info"])),
        cuda=facts["cuda"],
        problems=tuple(problems),
    )


def _question(python: Path) -> dict[str, Any]:
    """What an answer depends on beside the places that the interpreter imports from."""
    return {
        "python": str(python),
        "stamp": _stamp(str(python)),
        "worker": worker_sources(),
        "gpus": list(cuda_names()),
        "fields": [field.name for field in fields(Environment)],
    }


def _stamp(path: str) -> list[int]:
    """What changes when a file or the content of a folder does; empty where there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _recall(memory: Path) -> Environment | None:
    """A remembered answer whose places are all as they were."""
    if not memory.is_file():
        return None
    known = json.loads(memory.read_text(encoding="utf-8"))
    if any(_stamp(place) != stamp for place, stamp in known["stamps"].items()):
        return None
    facts = known["environment"]
    paths = {name: Path(facts[name]) for name in ("python", "full_info")}
    return Environment(**(facts | paths | {"problems": tuple(facts["problems"])}))


def _remember(memory: Path, environment: Environment, places: list[str]) -> None:
    paths = {name: str(getattr(environment, name)) for name in ("python", "full_info")}
    facts = asdict(environment) | paths
    text = json.dumps({"environment": facts, "stamps": {p: _stamp(p) for p in places}})
    # A home that cannot be written is said by the check before the work; planning can go on.
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        replace_file(memory, text + "\n")
