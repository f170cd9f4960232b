"""Writing files so that a crash leaves the old text or the new one."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from typing import TYPE_CHECKING

from harness.errors import InfraError

if TYPE_CHECKING:
    from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def fsync_path(path: Path) -> None:
    """Force a file's or folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def link_tree(source: Path, target: Path) -> None:
    """Put every file of a folder into another one: as a second name where the disk allows it.

    Args:
        source: Folder on the same disk, whose files nobody writes any more.
        target: Existing folder.
    """
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(exist_ok=True)
            continue
        try:
            place.hardlink_to(path)
        except OSError:  # a disk without second names
            shutil.copy2(path, place)


def probe_folder(folder: Path, hint: str) -> None:
    """Make a folder and prove that files can be written and forced to disk in it.

    Raises:
        InfraError: They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / ".probe", "probe\n")
        (folder / ".probe").unlink()
    except OSError as cause:
        raise InfraError(f"'{folder}' cannot be written: {cause.strerror}", hint) from cause
