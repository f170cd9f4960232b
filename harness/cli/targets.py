"""What a command means by TARGET: an artifact folder, or ``RUN:CELL``."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError, UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.spec import GenSpec, ModelSpec
    from harness.store.records import Run
    from harness.store.store import Store

ARTIFACT = "artifact.json"
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """An artifact with what is known about its making.

    Attributes:
        name: How it is printed: the row's id; outside run and store the beginning of the folder's
            name.
        folder: Artifact folder.
        model: What ``--model`` would be; empty where it is not recorded.
        bits: Widths of its row; empty likewise.
        run: Run folder that it was named by; None for a folder.
    """

    name: str
    folder: Path
    model: str
    bits: str
    run: Path | None = None

    def gen(self, spec: ModelSpec) -> GenSpec:
        """The generation settings it was made for, those of the model where none are recorded.

        Raises:
            HarnessError: The manifest beside it is damaged.
        """
        from harness.spec import GenSpec

        path = self.folder / MANIFEST
        if not path.is_file():
            return spec.gen
        with _reading(path):
            return GenSpec(**json.loads(path.read_text(encoding="utf-8"))["inputs"]["gen"])

    def store(self) -> Store | None:
        """The store that it lies in, None where it lies somewhere else."""
        from harness.store.store import Store

        place = self.folder.absolute()
        inside = (place / MANIFEST).is_file() and place.parent.parent.name == "artifact"
        return Store(place.parents[2]) if inside else None


def split(target: str, cell: str | None = None) -> tuple[Path, str | None]:
    """Read ``FOLDER`` or ``RUN:CELL``; a cell that is given besides counts where none is named."""
    folder = Path(target)
    before, _, after = target.rpartition(":")
    if not folder.exists() and before and Path(before).is_dir():
        return Path(before), after
    return folder, cell


def one_target(target: str) -> Target:
    """The artifact that ``FOLDER`` or ``RUN:CELL`` names.

    Raises:
        HarnessError: There is none, or it is gone from the store.
    """
    folder, cell = split(target)
    if (folder / ARTIFACT).is_file():
        return of_folder(folder)
    found = of_run(folder, cell)
    if cell is None:
        names = ", ".join(row.name for row in found)
        raise UsageError(f"'{target}' is a run, not an artifact", f"add a row, RUN:CELL: {names}")
    check_there(found[0])
    return found[0]


def check_there(target: Target) -> None:
    """Refuse an artifact that the store no longer has.

    Raises:
        HarnessError: It is gone.
    """
    if not (target.folder / ARTIFACT).is_file():
        raise HarnessError(f"'{target.folder}' is gone from the store", "run the experiment again")


def of_folder(folder: Path) -> Target:
    """An artifact by its folder; the store's manifest says which model it belongs to.

    Raises:
        HarnessError: The manifest beside it is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return Target(name=folder.name[:12], folder=folder, model="", bits="")
    from harness.models.table import BUNDLED

    with _reading(path):
        about = json.loads(path.read_text(encoding="utf-8"))["about"]
        name = about["model"]["name"]
        return Target(
            name=f"{name}--{about['label']}--{about['bits']}",
            folder=folder,
            model=name if name in BUNDLED else about["model"]["repo"],
            bits=about["bits"],
        )


@contextlib.contextmanager
def _reading(manifest: Path) -> Iterator[None]:
    """Say in two lines that a manifest does not hold what one holds."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as cause:
        raise HarnessError(
            f"'{manifest}' is damaged ({cause.__class__.__name__})",
            "run the experiment again, or copy the artifact without it to another folder",
        ) from cause


def of_run(folder: Path, cell: str | None) -> list[Target]:
    """The quantized rows of a run, or the one asked for.

    Raises:
        HarnessError: The folder is no run, or it has no such row.
    """
    from harness.store.records import load_run

    run: Run = load_run(folder)
    rows = {c.id: c for c in run.cells if c.artifact}
    if cell is not None and cell not in rows:
        raise unknown_name("quantized cell", cell, rows)
    repos = {m["name"]: m for m in run.experiment["models"]}
    chosen = [rows[cell]] if cell is not None else list(rows.values())
    if not chosen:
        raise UsageError(f"run '{folder}' has no quantized rows", "give a run that has some")
    return [
        Target(
            name=c.id,
            folder=Path(c.artifact),
            model=c.model if repos[c.model]["judge"] else repos[c.model]["repo"],
            bits=c.bits,
            run=folder,
        )
        for c in chosen
    ]
