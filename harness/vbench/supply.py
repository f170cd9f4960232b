"""Bringing one weight file to its place: from beside it, an installed package, a folder, the web.

Only ``harness fetch vbench-weights`` calls this; scoring never does.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.store.durable import fsync_path
from harness.vbench.download import Wanted, download, extract
from harness.vbench.ledger import sha256_of
from harness.vbench.parts import check_space
from harness.vbench.weights import (
    WeightFile,
    Weights,
    confirm,
    lock_file,
    locked_sha256,
    refuse_other,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.vbench.download import Report

HERE, LINKED, COPIED, FETCHED = "here already", "linked", "copied", "fetched"


class Offer:
    """A folder of the user's that may hold weight files, listed once.

    Args:
        root: The folder.

    Raises:
        HarnessError: It is none.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise HarnessError(f"'{root}' is no folder", "name the folder that holds the files")
        self.root = root.absolute()
        self._by_name: dict[str, list[Path]] = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                self._by_name.setdefault(name, []).append(Path(folder) / name)

    def candidates(self, weights: Weights, paths: Iterable[str]) -> list[Path]:
        """Files that may be the one with these paths: by its path, else by its name."""
        paths = tuple(paths)
        if exact := [self.root / path for path in paths if (self.root / path).is_file()]:
            return exact
        named = [found for path in paths for found in self._by_name.get(Path(path).name, [])]
        together = {found for found in named if _is_home(weights, found.parent)}
        return sorted(together, key=lambda path: (len(path.parts), path))


def _is_home(weights: Weights, folder: Path) -> bool:
    """Whether a folder may be where weights of several files lie: all do, and its path says so."""
    if len(weights.files) == 1:
        return True
    places = [(file.path, *file.instead) for file in weights.files]
    whole = all(any((folder / Path(p).name).is_file() for p in paths) for paths in places)
    return whole and weights.within in folder.as_posix()


@dataclass(frozen=True, kw_only=True, slots=True)
class Supply:
    """Where files may come from.

    Attributes:
        folder: Where they have to lie in the end.
        offer: The user's folder; then nothing is downloaded.
        site_packages: Of the scoring environment, where there is one.
    """

    folder: Path
    offer: Offer | None = None
    site_packages: Path | None = None

    def bring(self, weights: Weights, file: WeightFile, report: Report | None = None) -> str:
        """Bring one file to its place and check it.

        Args:
            weights: What it is part of.
            file: The file.
            report: Called while a download grows.

        Returns:
            What was done: :data:`HERE`, :data:`LINKED`, :data:`COPIED` or :data:`FETCHED`.

        Raises:
            HarnessError: It cannot be had, or what was had is another file.
        """
        done, source = HERE, "found in its place"
        here = file.here(self.folder)
        if here is None:
            done, source = self._get(weights, file, report)
            here = file.here(self.folder)
            assert here is not None
        confirm(file, here, self.folder, source=source)
        for path in file.also:
            if not (self.folder / path).is_file():
                place(here, self.folder / path)
        return done

    def _get(self, weights: Weights, file: WeightFile, report: Report | None) -> tuple[str, str]:
        """Put a file in its place; returns what was done and where it is from."""
        target = self.folder / file.path
        beside = [self.folder / path for path in file.also if (self.folder / path).is_file()]
        if self.site_packages is not None and file.ships:
            shipped = self.site_packages / file.ships
            beside += [shipped] if shipped.is_file() else []
        for path in beside:
            refuse_other(file, sha256_of(path), path)
            return place(path, target), str(path)
        if self.offer is not None:
            return self._from_offer(self.offer, weights, file, target)
        locked = "" if file.sha256 else locked_sha256(file)
        wanted = Wanted(
            sha256=file.sha256 or locked or file.sha256_prefix,
            bytes=file.bytes,
            hint=f"its publisher changed it since it was locked in {lock_file()}" if locked else "",
        )
        if not file.member:
            return FETCHED, download(file.urls, target, wanted, report)
        archive = self.folder / Path(file.path).parts[0] / Path(file.urls[0]).name
        url = download(file.urls, archive, None, report) if not archive.is_file() else file.urls[0]
        extract(archive, file.member, target)
        archive.unlink()
        return FETCHED, f"{file.member} of {url}"

    def _from_offer(
        self, offer: Offer, weights: Weights, file: WeightFile, target: Path
    ) -> tuple[str, str]:
        paths = (file.path, *file.also, *file.instead)
        if found := offer.candidates(weights, paths):
            path = _choose(file, found)
            mine = next((p for p in file.instead if Path(p).name == path.name), file.path)
            return place(path, self.folder / mine), str(path)
        archives = (
            offer.candidates(weights, [Path(u).name for u in file.urls]) if file.member else []
        )
        if archives:
            extract(archives[0], file.member, target)
            return COPIED, f"{file.member} of {archives[0]}"
        names = " nor ".join(f"'{Path(path).name}'" for path in (file.path, *file.instead))
        raise HarnessError(
            f"'{file.path}' is not in {offer.root}, by its path or as {names}",
            f"put it there, or leave --from out to download it: {file.urls[0]}",
        )


def _choose(file: WeightFile, found: list[Path]) -> Path:
    """The candidate that is the file.

    Raises:
        HarnessError: None is, or it cannot be said which.
    """
    if len(found) > 1 and len({sha256_of(path) for path in found}) > 1:
        known = file.sha256 or file.sha256_prefix
        right = [path for path in found if known and sha256_of(path).startswith(known)]
        if not right:
            raise HarnessError(
                f"which is '{file.path}'? these differ: {', '.join(map(str, found))}",
                "give a folder that holds one of them",
            )
        found = right
    refuse_other(file, sha256_of(found[0]), found[0])
    return found[0]


def place(source: Path, target: Path) -> str:
    """Let a file lie at a second place: a hard link where the file system can, else a copy.

    Raises:
        HarnessError: There is no room for a copy.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Never the name of a part: a download would write through a link into the user's own file.
    source, temporary = source.resolve(), target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    done = LINKED
    try:
        temporary.hardlink_to(source)
    except OSError:  # another file system, or one without hard links
        check_space(target.parent, source.stat().st_size, target.name)
        shutil.copyfile(source, temporary)
        fsync_path(temporary)
        done = COPIED
    temporary.replace(target)
    fsync_path(target.parent)
    return done
