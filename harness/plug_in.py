"""What others wrote and name as ``module:attribute``: how it is spelled, and loading it."""

from __future__ import annotations

import importlib.util
import os
import re
import traceback
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from importlib.metadata import EntryPoint

_NAMES = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_SPELLED = re.compile(f"{_NAMES}:{_NAMES}")


def check_spelling(kind: str, name: str) -> None:
    """Refuse what is no ``module:attribute``.

    Args:
        kind: ``method`` or ``metric``.
        name: What was typed.

    Raises:
        UsageError: It is something else, for example the path of a file.
    """
    place, _, attribute = name.rpartition(":")
    if place == "__main__":
        raise UsageError(
            f"{kind} '{name}' cannot be imported by a worker",
            f"put {attribute} into a file of its own, and give my_file:{attribute}",
        )
    if _SPELLED.fullmatch(name) and not place.endswith(".py"):
        return
    path = PurePath(place)
    hint = "give module:attribute, as in my_file:MyName with my_file.py on PYTHONPATH"
    if attribute.isidentifier() and path.stem.isidentifier() and path.name not in ("", path.stem):
        hint = f"PYTHONPATH={path.parent} and {path.stem}:{attribute} load it from that file"
    elif attribute.isidentifier() and path.stem.isidentifier() and len(path.parts) > 1:
        hint = f"PYTHONPATH={path.parent} and {path.stem}:{attribute} load it from that folder"
    raise UsageError(f"{kind} '{name}' is no module:attribute", hint)


def load(kind: str, name: str, point: EntryPoint, broken: type[HarnessError]) -> Any:
    """Import what an entry point names; of a class, make the object.

    Args:
        kind: ``method`` or ``metric``.
        name: What it was asked for by.
        point: Its entry point.
        broken: What to raise where it cannot be loaded.

    Raises:
        HarnessError: As ``broken``, whatever the file raises.
    """
    try:
        found: Any = point.load()
        return found() if isinstance(found, type) else found
    except HarnessError:
        raise
    except Exception as cause:  # it is not our file: whatever is wrong in it is told, not thrown
        raise broken(
            f"{kind} '{name}' ({point.value}) cannot be imported: {told(cause)}", _remedy(cause)
        ) from cause


@contextmanager
def importable(names: Iterable[str]) -> Iterator[None]:
    """Let workers import what this process can: methods and metrics named ``module:attribute``.

    A worker is another Python, which has not this one's ``sys.path`` but its environment.

    Args:
        names: Of methods and metrics, the installed ones too.
    """
    tops = dict.fromkeys(name.partition(":")[0].partition(".")[0] for name in names if ":" in name)
    specs = [found for top in tops if (found := importlib.util.find_spec(top)) is not None]
    places = [next(iter(s.submodule_search_locations or [s.origin or ""])) for s in specs]
    folders = [str(Path(place).absolute().parent) for place in places if place]
    before = os.environ.get("PYTHONPATH")
    path = [*folders, *(before.split(os.pathsep) if before else ())]
    if path:
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before


def told(cause: Exception) -> str:
    """An exception as one line; the kind is named where its text may not speak for itself."""
    first = next(iter(str(cause).splitlines()), "")
    if isinstance(cause, (ImportError, AttributeError)) and first:
        return first
    return f"{type(cause).__name__}: {first}".removesuffix(": ")


def place_of(cause: Exception) -> str:
    """File and line where an exception came from."""
    if isinstance(cause, SyntaxError) and cause.filename:
        return f"{cause.filename}, line {cause.lineno}"
    frames = [f for f in traceback.extract_tb(cause.__traceback__) if f.filename != __file__]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "its signature"


def _remedy(cause: Exception) -> str:
    if isinstance(cause, (ImportError, AttributeError)):
        return "install what it needs, or put its folder on PYTHONPATH"
    return f"correct {place_of(cause)}"
