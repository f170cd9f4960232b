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
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
def gc(days: float | None, dry_run: bool) -> None:
    """Remove what killed workers left, damaged entries and, if asked, old results."""
    from harness.store.store import Store

    store = Store()
    doomed = [("leftover", path) for path in store.stale()]
    doomed += [("damaged", path) for path in sorted((store.root / "quarantine").glob("*"))]
    if days is not None:
        doomed += [("unused", path) for path in _unused(store, days)]
    total = 0
    for why, path in doomed:
        size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        total += size
        click.echo(f"{why}: {path.relative_to(store.root)} ({size / 1e6:.1f} MB)")
        if not dry_run:
            shutil.rmtree(path)
    verb = "would free" if dry_run else "freed"
    click.echo(f"{verb} {total / 1e6:.1f} MB in {len(doomed)} folders of {store.root}")


def _unused(store: Store, days: float) -> list[Path]:
    """Entries whose folder was not touched; every run touches what it uses."""
    limit = time.time() - days * _DAY_S
    return [folder for _, _, folder in store.entries() if folder.stat().st_mtime < limit]
