"""The weight files of VBench's dimensions: the table, where they lie, and which bytes they are.

``weights.toml`` holds a sha256 only where its publisher states one. Every other file is locked when
it is first used: its sha256 goes to ``$HARNESS_HOME/vbench-weights-lock.json`` and a file with
another one is refused from then on. Nothing here uses the network.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, unknown_name
from harness.store.keys import digest
from harness.store.store import home, now
from harness.vbench.dimensions import DIMENSIONS, EXTRA_WEIGHTS
from harness.vbench.ledger import read_json, sha256_of, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable

COMMAND = "harness fetch vbench-weights"
TABLE = "weights.toml"
LOCK = "vbench-weights-lock.json"
REGISTERED = "vbench-weights.json"
STAND_IN = "stand-in-weights.txt"
"""A folder that holds a file of this name declares its weights as not the official ones: random
ones for a test, or one's own. Nothing is checked or locked there, and every record says so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """One file.

    Attributes:
        id: Of the weights it is part of.
        path: Where the official package looks for it, below the folder.
        urls: Addresses, tried in order.
        bytes: Its size; 0 where it is not known.
        sha256: Of its content; empty where it is not known.
        sha256_prefix: First digits of the sha256, where only they are known.
        member: Name inside the archive that the addresses give; empty where they give the file.
        also: Other places the same file has to lie at.
        instead: Places of files that serve as well.
        ships: Where it is installed, below site-packages of the scoring environment.
    """

    id: str
    path: str
    urls: tuple[str, ...]
    bytes: int = 0
    sha256: str = ""
    sha256_prefix: str = ""
    member: str = ""
    also: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    ships: str = ""

    def here(self, folder: Path) -> Path | None:
        """Where it lies in a folder, or None."""
        paths = (folder / path for path in (self.path, *self.instead))
        return next((path for path in paths if path.is_file()), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """What a dimension loads as one thing.

    Attributes:
        id: As in :mod:`harness.vbench.dimensions`.
        about: One line.
        licence: Of the repository that publishes it; empty where it was not read.
        files: Its files.
        stand_in_mb: Megabytes of a random file in the same format; 0 where none was made.
        within: Part of the path of any folder that holds the files, where they are several.
    """

    id: str
    about: str
    licence: str
    files: tuple[WeightFile, ...]
    stand_in_mb: int = 0
    within: str = ""

    @property
    def size(self) -> str:
        """Size in words; empty where nothing is known."""
        if known := sum(file.bytes for file in self.files if all(f.bytes for f in self.files)):
            return f"{known / 1e6:.1f} MB"
        return f"about {self.stand_in_mb} MB" if self.stand_in_mb else ""


@cache
def table() -> dict[str, Weights]:
    """All weights by id, in the order of ``weights.toml``."""
    rows = tomllib.loads((Path(__file__).parent / TABLE).read_text(encoding="utf-8"))
    return {name: _weights(name, row) for name, row in rows.items()}


def _weights(name: str, row: dict[str, Any]) -> Weights:
    files = tuple(_file(name, file) for file in row.pop("files"))
    return Weights(id=name, files=files, **row)


def _file(name: str, row: dict[str, Any]) -> WeightFile:
    facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return WeightFile(id=name, **facts)


def ids_of(dimensions: Iterable[str]) -> tuple[str, ...]:
    """Ids of the weights that dimensions need, each once, in the order of the table.

    Raises:
        UsageError: A dimension is unknown.
    """
    known = {name: row.weights for name, row in DIMENSIONS.items()} | EXTRA_WEIGHTS
    wanted: set[str] = set()
    for name in dimensions:
        if name not in known:
            raise unknown_name("dimension", name, known)
        wanted.update(known[name])
    return tuple(name for name in table() if name in wanted)


def folder() -> Path:
    """Where the weights lie: the registered folder, or one below ``$HARNESS_HOME``.

    Raises:
        HarnessError: What was registered cannot be read.
    """
    chosen = read_json(home() / REGISTERED).get("folder")
    return Path(str(chosen)) if chosen else home() / "vbench-weights"


def register(place: Path) -> None:
    """Let the weights lie in this folder from now on."""
    write_json(home() / REGISTERED, {"folder": str(place.expanduser().absolute())})


def missing(ids: Iterable[str], folder: Path) -> list[WeightFile]:
    """Files of these weights that are not in a folder."""
    files = (file for name in dict.fromkeys(ids) for file in table()[name].files)
    return [file for file in files if file.here(folder) is None]


def missing_line(dimension: str, ids: Iterable[str], place: Path | None = None) -> str:
    """Why a dimension is skipped, and the command that changes it, in one line.

    Args:
        dimension: Its name.
        ids: Ids of the weights it needs.
        place: The folder that was looked in; None is the usual one.
    """
    place = folder() if place is None else place
    texts = []
    for name in dict.fromkeys(file.id for file in missing(ids, place)):
        weights = table()[name]
        lacking = [file.path for file in weights.files if file.here(place) is None]
        size = f", {weights.size}" if weights.size else ""
        texts.append(f"{name} ({', '.join(lacking)}{size})")
    return f"weights {'; '.join(texts)} are not in {place}: {COMMAND} --dimension {dimension}"


def digests(ids: Iterable[str], folder: Path) -> dict[str, str]:
    """sha256 of what lies in a folder; where an id has several files, of all their digests.

    A file is read once and remembered by its size and time of change.

    Raises:
        HarnessError: A file is missing, or is not the known one or the one locked at first use.
    """
    found = {}
    for name in dict.fromkeys(ids):
        each = {}
        for file in table()[name].files:
            path = file.here(folder)
            if path is None:
                raise HarnessError(f"weights '{file.path}' are not in {folder}", f"run `{COMMAND}`")
            each[file.path] = confirm(file, path, folder)
        found[name] = digest(each) if len(each) > 1 else next(iter(each.values()))
    return found


def confirm(file: WeightFile, path: Path, folder: Path, *, source: str = "") -> str:
    """Digest of a file that was found, held against what is known; locked where nothing is.

    Args:
        file: What it should be.
        path: Where it lies.
        folder: The folder of weights.
        source: Where it came from, for the lock.

    Returns:
        Its sha256.

    Raises:
        HarnessError: It is another file than the known or locked one.
    """
    found = sha256_of(path)
    if is_stand_in(folder):
        return found
    refuse_other(file, found, path)
    key = lock_key(file, path)
    locked = read_json(lock_file())
    if not file.sha256 and key not in locked:
        entry = {"sha256": found, "bytes": path.stat().st_size, "at": now(), "from": source}
        write_json(lock_file(), locked | {key: entry})
    return found


def refuse_other(file: WeightFile, sha256: str, path: Path) -> None:
    """Raise a HarnessError for a digest that is not the known or locked one."""
    known = file.sha256 or file.sha256_prefix
    if not sha256.startswith(known):
        raise HarnessError(
            f"'{path}' is not the published file: its sha256 is {sha256[:12]}..., not {known}",
            f"remove it and run `{COMMAND}`",
        )
    entry = read_json(lock_file()).get(lock_key(file, path), {})
    if not file.sha256 and entry and entry["sha256"] != sha256:
        raise HarnessError(
            f"'{path}' changed: its sha256 is {sha256[:12]}..., locked {entry['at']} was "
            f"{entry['sha256'][:12]}...",
            f"bring the old file back, or remove its entry from {lock_file()} to use this one",
        )


def is_stand_in(folder: Path) -> bool:
    """Whether a folder declares its weights as not the official ones."""
    return (folder / STAND_IN).is_file()


def origins(ids: Iterable[str], folder: Path) -> dict[str, str]:
    """How it is known that weights are the right ones, in words, for records and the table."""
    if is_stand_in(folder):
        return dict.fromkeys(ids, "stand-in, not the official weights")
    return {name: _origin(table()[name]) for name in dict.fromkeys(ids)}


def _origin(weights: Weights) -> str:
    if all(file.sha256 for file in weights.files):
        return "sha256 known"
    locked = read_json(lock_file())
    keys = [p for file in weights.files for p in (file.path, *file.instead) if p in locked]
    head = "first digits known, " if any(file.sha256_prefix for file in weights.files) else ""
    if len(keys) < len(weights.files):
        return f"{head}not locked yet"
    return f"{head}locked at first use, {max(str(locked[key]['at']) for key in keys)}"


def lock_key(file: WeightFile, path: Path) -> str:
    """Name in the lock: the place below the folder, of which a file may have two."""
    return next((p for p in file.instead if Path(p).name == path.name), file.path)


def lock_file() -> Path:
    """Where the digests of files that nobody publishes one for are locked."""
    return home() / LOCK


def locked_sha256(file: WeightFile) -> str:
    """The digest that a file was locked at, or empty."""
    return str(read_json(lock_file()).get(file.path, {}).get("sha256", ""))
