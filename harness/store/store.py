"""The store: results by key, published in one rename, read only while their digests hold.

``$HARNESS_HOME/store/<kind>/<2 hex>/<key>/`` holds the files of one result and ``manifest.json``,
which is written last. There are no locks: whoever publishes first wins, and a folder without a
valid manifest does not exist.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.store.durable import fsync_path, probe_folder
from harness.store.durable import replace_file as replace_file
from harness.store.keys import canonical, digest, file_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KINDS = ("text", "pool", "artifact", "latents", "clip", "score", "measure")
MANIFEST = "manifest.json"
JOURNAL = "journal.jsonl"
MANIFEST_SCHEMA = 1
STALE_TMP_S = 86_400.0


def home() -> Path:
    """``$HARNESS_HOME``, or the user's cache folder."""
    if chosen := os.environ.get("HARNESS_HOME"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("vdit-quant-harness"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A published result.

    Attributes:
        folder: Where its files lie; read-only by convention.
        manifest: kind, key, inputs, about, files with sha256 and bytes, at.
    """

    kind: str
    key: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def content(self) -> str:
        """Digest over the names and digests of the files."""
        return digest({name: facts["sha256"] for name, facts in self.manifest["files"].items()})

    def file_sha256(self, name: str) -> str:
        """sha256 of one of the files as recorded when it was published."""
        return str(self.manifest["files"][name]["sha256"])

    def json(self, name: str) -> Any:
        """Read one of the files as JSON."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


class Store:
    """Results by kind and key under one folder.

    Args:
        root: The folder; made when something is first published.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (home() / "store") if root is None else root
        self._checked: dict[tuple[str, str], tuple[int, Entry]] = {}

    def folder(self, kind: str, key: str) -> Path:
        """Where the entry lies when it exists."""
        return self.root / kind / key[:2] / key

    def find(self, kind: str, key: str) -> Entry | None:
        """Look an entry up and check every digest; a broken one is moved away, loudly.

        The digests are checked once by each process, which does not change what it has published.

        Returns:
            The entry, or None when it has to be made.
        """
        folder = self.folder(kind, key)
        if not folder.is_dir():
            return None
        broken = ""
        try:
            stamp = (folder / MANIFEST).stat().st_mtime_ns
            known_stamp, known = self._checked.get((kind, key), (0, None))
            if known is not None and known_stamp == stamp:
                return known
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            broken = _damage(folder, manifest, kind, key)
        except FileNotFoundError:
            broken = "manifest.json is missing"
        except (ValueError, KeyError, TypeError) as cause:
            broken = f"manifest.json cannot be read ({cause.__class__.__name__})"
        if broken:
            self._quarantine(kind, key, broken)
            return None
        entry = Entry(kind=kind, key=key, folder=folder, manifest=manifest)
        with contextlib.suppress(OSError):  # the time of last use, for `harness gc --older-than`
            os.utime(folder)
        self._checked[kind, key] = (stamp, entry)
        return entry

    @contextlib.contextmanager
    def build(
        self,
        kind: str,
        key: str,
        inputs: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
    ) -> Iterator[Path]:
        """Give a temporary folder to write into; publish it when the block ends without an error.

        Args:
            kind: One of ``KINDS``.
            key: Digest of ``inputs``.
            inputs: What the key was made from; kept in the manifest.
            about: Facts that are no part of the key: names, the model's folder, and ``seconds``
                where the work was done before the block, whose own time it is otherwise. The
                journal takes ``seconds``, ``label`` and ``of``, the model's name.

        Raises:
            InfraError: The store cannot be written.
        """
        if digest(inputs) != key:
            raise ValueError(f"the key of this {kind} is not the digest of its inputs")
        work = self.scratch(f"{kind}-{key[:12]}")
        started = time.monotonic()
        try:
            yield work
            facts = {"seconds": round(time.monotonic() - started, 3), **(about or {})}
            self._publish(work, kind, key, inputs, facts)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def discard(self, kind: str, key: str) -> None:
        """Remove an entry that was an intermediate of one that is published now."""
        self._checked.pop((kind, key), None)
        refuge = self.scratch("discarded")
        with contextlib.suppress(FileNotFoundError):  # in one move: half an entry would be damaged
            self.folder(kind, key).rename(refuge / key)
        shutil.rmtree(refuge, ignore_errors=True)

    def scratch(self, name: str) -> Path:
        """Make an empty folder of this process; what a killed one leaves, ``stale`` finds."""
        owner = f"{socket.gethostname()}~{os.getpid()}"
        folder = self.root / "tmp" / f"{name}~{owner}~{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        return folder

    def _publish(
        self,
        work: Path,
        kind: str,
        key: str,
        inputs: Mapping[str, Any],
        about: Mapping[str, Any],
    ) -> None:
        files = {}
        for path in sorted(p for p in work.rglob("*") if p.is_file()):
            fsync_path(path)
            name = path.relative_to(work).as_posix()
            files[name] = {"sha256": file_digest(path), "bytes": path.stat().st_size}
        manifest = {
            "schema": MANIFEST_SCHEMA,
            "kind": kind,
            "key": key,
            "inputs": dict(inputs),
            "about": dict(about),
            "files": files,
            "at": now(),
        }
        replace_file(work / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        for folder in sorted({p.parent for p in work.rglob("*") if p.is_file()}):
            fsync_path(folder)
        target = self.folder(kind, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        event = "published"
        try:
            work.rename(target)
        except OSError as cause:
            if cause.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            event = "already there"
            if self.find(kind, key) is None:
                work.rename(target)
                event = "published"
        fsync_path(target.parent)
        self._log(event, kind, key, about)

    def _quarantine(self, kind: str, key: str, reason: str) -> None:
        refuge = self.root / "quarantine"
        refuge.mkdir(parents=True, exist_ok=True)
        target = refuge / f"{kind}-{key}-{secrets.token_hex(4)}"
        try:
            self.folder(kind, key).rename(target)
        except FileNotFoundError:
            return  # another process moved it first
        self._log("quarantined", kind, key, {"reason": reason})
        print(
            f"warning: {kind} {key[:12]} in the store is damaged: {reason}; "
            f"moved to '{target}', it is made again",
            file=sys.stderr,
            flush=True,
        )

    def _log(self, event: str, kind: str, key: str, about: Mapping[str, Any]) -> None:
        line = {"at": now(), "event": event, "kind": kind, "key": key, "pid": os.getpid()}
        line |= {
            name: about[name] for name in ("seconds", "label", "of", "reason") if name in about
        }
        # One short write in append mode lands whole, whoever else writes.
        handle = os.open(self.root / JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, (canonical(line) + "\n").encode())
        finally:
            os.close(handle)

    def journal(self) -> list[dict[str, Any]]:
        """What was published and quarantined, oldest first."""
        path = self.root / JOURNAL
        if not path.exists():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a line cut by a full disk
                rows.append(json.loads(line))
        return rows

    def entries(self) -> Iterator[tuple[str, str, Path]]:
        """Every published folder as (kind, key, folder), unchecked."""
        for kind in KINDS:
            for folder in sorted((self.root / kind).glob("??/*")):
                yield kind, folder.name, folder

    def stale(self) -> list[Path]:
        """Temporary folders whose process is gone."""
        return [p for p in sorted((self.root / "tmp").glob("*")) if _is_stale(p)]

    def probe(self) -> None:
        """Write, force to disk and remove a file.

        Raises:
            InfraError: The store cannot be written.
        """
        probe_folder(self.root / "tmp", "set HARNESS_HOME to a folder you can write")


def now() -> str:
    """UTC time in ISO format, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _damage(folder: Path, manifest: Mapping[str, Any], kind: str, key: str) -> str:
    if (manifest["schema"], manifest["kind"], manifest["key"]) != (MANIFEST_SCHEMA, kind, key):
        return "the manifest is of another entry"
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"] or file_digest(path) != facts["sha256"]:
            return f"{name} does not have the digest it was published with"
    return ""


def _is_stale(path: Path) -> bool:
    try:
        old = time.time() - path.stat().st_mtime > STALE_TMP_S
    except FileNotFoundError:
        return False
    _name, *owner = path.name.split("~")
    if len(owner) == 3 and owner[0] == socket.gethostname() and owner[1].isdigit():
        try:
            os.kill(int(owner[1]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return old
    return old
