"""``harness gc``."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from harness.store.store import Store

_DAY_S = 86_400.0


@click.command()
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    help="Remove results that no run has used for so many days.",
)
@click.option(
    "--outdated",
    is_flag=True,
    help="Remove results of earlier versions whose keys this version never looks up.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
def gc(days: float | None, outdated: bool, dry_run: bool) -> None:
    """Remove what killed workers left, damaged entries and, if asked, old results.

    What an interrupted calibration has finished stays for a week, or for the days of --older-than,
    so that the same command goes on from there.

    What a run folder refers to is removed as well. The folder keeps its table, figures and clips,
    so `report` and `compare` work as before; `verify` and `diagnose` of its rows need the
    artifacts in the store, and say that they are gone.
    """
    from harness.store.manifests import find_outdated
    from harness.store.store import Store
    from harness.store.work import STALE_WORK_S, idle_work, remove_work

    store = Store()
    earlier = find_outdated(store)
    doomed = dict.fromkeys(store.stale(), "leftover")
    doomed |= dict.fromkeys(sorted((store.root / "quarantine").glob("*")), "damaged")
    age_s = STALE_WORK_S if days is None else days * _DAY_S
    doomed |= dict.fromkeys(idle_work(store, older_than_s=age_s), "unfinished")
    if days is not None:
        doomed |= dict.fromkeys(_unused(store, days), "unused")
    if outdated:
        doomed |= dict.fromkeys(earlier.folders, "outdated")
    total = 0
    for path, why in doomed.items():
        size = _bytes(path)
        total += size
        click.echo(f"{why}: {path.relative_to(store.root)} ({size / 1e6:.1f} MB)")
        if not dry_run and why == "unfinished":
            remove_work(path)
        elif not dry_run:
            shutil.rmtree(path)
    verb = "would free" if dry_run else "freed"
    click.echo(f"{verb} {total / 1e6:.1f} MB in {len(doomed)} folders of {store.root}")
    _say_unfinished(store, doomed)
    if outdated:
        _say_kept(store, [path for path in earlier.damaged if path not in doomed])
    else:
        _hint([path for path in earlier.folders if path not in doomed])


def _unused(store: Store, days: float) -> list[Path]:
    """Entries whose folder was not touched; every run touches what it uses."""
    limit = time.time() - days * _DAY_S
    return [folder for _, _, folder in store.entries() if folder.stat().st_mtime < limit]


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _hint(outdated: list[Path]) -> None:
    """Say that there are results of earlier versions, where there are some."""
    if outdated:
        size = sum(_bytes(path) for path in outdated) / 1e6
        click.echo(
            f"{len(outdated)} results ({size:.1f} MB) of earlier versions are never found by this "
            "one: `harness gc --outdated` removes them"
        )


def _say_unfinished(store: Store, doomed: dict[Path, str]) -> None:
    """Say what is kept of interrupted calibrations."""
    from harness.store.work import unfinished_work

    kept = [path for path in unfinished_work(store) if path not in doomed]
    if kept:
        size = sum(_bytes(path) for path in kept) / 1e6
        click.echo(
            f"{len(kept)} unfinished results ({size:.1f} MB) are kept in '{kept[0].parent}' for "
            "their command to go on from there; they go when nobody did for a week"
        )


def _say_kept(store: Store, damaged: list[Path]) -> None:
    """Name the entries of which nobody can say whether they are outdated."""
    for path in damaged:
        place = path.relative_to(store.root)
        click.echo(f"kept: {place}: its manifest is damaged, so its version is not known")
