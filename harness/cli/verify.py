"""``harness verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.errors import HarnessError, UsageError

if TYPE_CHECKING:
    from harness.records import Run

ARTIFACT = "artifact.json"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--cell", help="Only this cell of a run folder.")
@click.option("--model", help="Model of a single artifact.  [default: as recorded beside it]")
@click.option("--bits", help="Widths of a single artifact.  [default: as recorded beside it]")
def verify(folder: Path, cell: str | None, model: str | None, bits: str | None) -> int:
    """Check quantized models: every layer once, at its bits, with no more levels than they allow.

    FOLDER is an artifact or a run; of a run every quantized row is checked.
    """
    if (folder / ARTIFACT).is_file():
        wanted = [(folder.name[:12], folder, *_origin(folder, model, bits))]
    else:
        wanted = _of_run(folder, cell)
    failed = 0
    for name, artifact, model_name, widths in wanted:
        try:
            _check(artifact, model_name, widths)
            click.echo(f"ok    {name}")
        except HarnessError as cause:
            failed += 1
            click.echo(f"FAIL  {name}: {cause.message}")
    return 1 if failed else 0


def _of_run(folder: Path, cell: str | None) -> list[tuple[str, Path, str, str]]:
    from harness.errors import unknown_name
    from harness.records import load_run

    run: Run = load_run(folder)
    rows = {c.id: c for c in run.cells if c.artifact}
    if cell is not None and cell not in rows:
        raise unknown_name("quantized cell", cell, rows)
    repos = {m["name"]: m for m in run.experiment["models"]}
    chosen = [rows[cell]] if cell is not None else list(rows.values())
    if not chosen:
        raise UsageError(f"run '{folder}' has no quantized rows", "give a run that has some")
    return [
        (
            c.id,
            Path(c.artifact),
            c.model if repos[c.model]["judge"] else repos[c.model]["repo"],
            c.bits,
        )
        for c in chosen
    ]


def _origin(folder: Path, model: str | None, bits: str | None) -> tuple[str, str]:
    """Model and widths of an artifact, from the store's manifest unless they are given."""
    import json

    if model and bits:
        return model, bits
    try:
        about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["about"]
    except (OSError, ValueError, KeyError) as cause:
        raise UsageError(
            f"artifact '{folder}' does not lie in the store, so its model is not recorded",
            "give --model and --bits",
        ) from cause
    from harness.models.table import BUNDLED

    name = about["model"]["name"]
    recorded = name if name in BUNDLED else about["model"]["repo"]
    return model or recorded, bits or about["bits"]


def _check(artifact: Path, model: str, bits: str) -> None:
    from harness.bits import BitSpec
    from harness.models.load import load_pipeline
    from harness.models.table import model_spec
    from harness.stages.verify import verify as check

    if not (artifact / ARTIFACT).is_file():
        raise HarnessError(f"'{artifact}' is gone from the store", "run the experiment again")
    spec = model_spec(model)
    pipeline = load_pipeline(spec, device="cpu", dtype=spec.gen.dtype)
    check(pipeline, artifact, family=spec.family, bits=BitSpec.parse(bits), fresh=False)
