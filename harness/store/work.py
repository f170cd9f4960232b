"""Work in progress: what a killed worker leaves, from where the next one goes on.

``$HARNESS_HOME/store/work/<kind>-<key>/`` belongs to one result that is being made. A lock beside
it lets one process at a time work there; the kernel gives it free when that process ends, however
it ends. What was begun under other circumstances (another device, library or calibration) is
thrown away, loudly. The folder goes when the result is published.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import InfraError
from harness.store.durable import replace_file
from harness.store.keys import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from harness.store.store import Store

FOLDER = "work"
STAMP = "stamp.json"
STALE_WORK_S = 7 * 86_400.0
"""Age from which ``harness gc`` removes work that nobody went on with."""

_POLL_S = 1.0
_LOCK = ".lock"


@dataclass(kw_only=True)
class Work:
    """A folder in which one result is being made.

    Attributes:
        folder: Existing folder; what lies in it was left by an earlier attempt at the same result.
        resumed: Whether something was left.
    """

    folder: Path
    resumed: bool
    published: bool = False

    def finish(self) -> None:
        """Say that the result is published: the folder goes when the claim ends."""
        self.published = True


@contextlib.contextmanager
def claim(
    store: Store,
    kind: str,
    key: str,
    *,
    stamp: Mapping[str, Any],
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[Work]:
    """Hold the work folder of a result; waits while another process holds it.

    Args:
        store: Where results are published.
        kind: Kind of the result.
        key: Its key.
        stamp: What must be as it was for the work to go on, beside the key: JSON facts.
        waiting: Called now and then while another process holds the folder.

    Raises:
        InfraError: The disk knows no locks.
    """
    root = store.root / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{kind}-{key}"
    handle = _lock(folder.with_name(folder.name + _LOCK), waiting)
    try:
        work = _open(folder, digest(dict(stamp)))
        yield work
        if work.published:
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_name(folder.name + _LOCK).unlink(missing_ok=True)
    finally:
        os.close(handle)


def _open(folder: Path, stamp: str) -> Work:
    try:
        found = json.loads((folder / STAMP).read_text(encoding="utf-8"))["stamp"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if folder.exists() and found != stamp:
        print(
            f"warning: what was begun in '{folder}' was begun under other circumstances (device, "
            "libraries or calibration); it is begun anew",
            file=sys.stderr,
            flush=True,
        )
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    replace_file(folder / STAMP, json.dumps({"stamp": stamp}) + "\n")
    return Work(folder=folder, resumed=len(list(folder.iterdir())) > 1)


def _lock(path: Path, waiting: Callable[[], None]) -> int:
    """Take the lock; whoever held it may have removed its file meanwhile."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if _try(handle, path) and _is_still(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        waiting()
        time.sleep(_POLL_S)


def _try(handle: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        if cause.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise InfraError(
            f"'{path}' cannot be locked: {cause.strerror}",
            "set HARNESS_HOME to a disk that knows locks",
        ) from cause
    return True


def _is_still(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def idle_work(store: Store, *, older_than_s: float = STALE_WORK_S) -> list[Path]:
    """Work folders to be removed: nobody holds them, and their result is there or they are old.

    Args:
        store: The store.
        older_than_s: Seconds since somebody last worked there.
    """
    found = []
    for folder in unfinished_work(store):
        kind, _, key = folder.name.partition("-")
        with contextlib.suppress(FileNotFoundError):
            old = time.time() - folder.stat().st_mtime > older_than_s
            if (old or store.folder(kind, key).is_dir()) and not _is_held(folder):
                found.append(folder)
    return found


def unfinished_work(store: Store) -> list[Path]:
    """Every work folder."""
    return sorted(path for path in (store.root / FOLDER).glob("*-*") if path.is_dir())


def remove_work(folder: Path) -> None:
    """Remove a work folder with its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(folder.name + _LOCK).unlink(missing_ok=True)


def _is_held(folder: Path) -> bool:
    path = folder.with_name(folder.name + _LOCK)
    if not path.exists():
        return False
    handle = os.open(path, os.O_RDWR)
    try:
        return not _try(handle, path)
    finally:
        os.close(handle)
