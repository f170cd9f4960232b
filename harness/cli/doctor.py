"""``harness doctor``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

_GB = 1e9
_CLIPS = 8
_MARKS = {True: "ok  ", False: "FAIL", None: "--  "}  # the last: optional, and not there


@click.command()
@click.option(
    "--vbench",
    is_flag=True,
    help="Score synthetic clips with VBench as its package does and as this one does; compare.",
)
@click.option(
    "--weights",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --vbench: folder of weights.  [default: that of `harness fetch vbench-weights`]",
)
@click.option("--clips", type=click.IntRange(min=1), help="With --vbench: how many clips.")
@click.option(
    "--dimension", "dimensions", multiple=True, help="With --vbench: only this one; again."
)
def doctor(
    vbench: bool, weights: Path | None, clips: int | None, dimensions: tuple[str, ...]
) -> int:
    """Say what this machine has and what it lacks; exits 4 when something is broken."""
    from harness.errors import UsageError

    if vbench:
        from harness.vbench.selfcheck import run

        return run(python=None, weights=weights, clips=clips or _CLIPS, dimensions=dimensions)
    if weights is not None or clips is not None or dimensions:
        raise UsageError("--weights, --clips and --dimension go with --vbench", "add --vbench")
    rows = _checks()
    width = max(len(name) for name, _, _ in rows)
    for name, state, fine in rows:
        click.echo(f"{_MARKS[fine]}  {name:<{width}} {state}")
    return 4 if any(fine is False for _, _, fine in rows) else 0


def _checks() -> list[tuple[str, str, bool | None]]:
    from harness.cli import doctor_vbench
    from harness.score.scorers import lpips_missing
    from harness.store import provenance

    rows: list[tuple[str, str, bool | None]] = [
        ("python", sys.version.split()[0], sys.version_info >= (3, 11))
    ]
    for name in ("torch", "diffusers", "transformers", "torchmetrics", "scipy", "pandas", "av"):
        found = provenance.package_version(name)
        rows.append((name, found or "is not installed", bool(found)))
    decord = provenance.package_version("decord")
    rows.append(("decord", decord or "is not installed; PyAV reads the clips", True))
    lpips = lpips_missing()
    rows.append(("lpips", lpips or "weights are here", None if lpips else True))
    gpus = provenance.cuda_names()
    rows.append(("gpu", ", ".join(gpus) or "none; everything runs on the processor", True))
    rows.append(("cpu", f"{provenance.cpu_name()}, {provenance.cores()} cores", True))
    return [*rows, *_store(), *_codecs(), *_installed(), *doctor_vbench.rows()]


def _store() -> list[tuple[str, str, bool]]:
    from harness.errors import HarnessError
    from harness.store.store import Store

    store = Store()
    try:
        store.probe()
    except HarnessError as cause:
        return [("store", cause.message, False)]
    free = shutil.disk_usage(store.root).free
    held = sum(1 for _ in store.entries())
    return [("store", f"{store.root}: {held} entries, {free / _GB:.1f} GB free", free > _GB)]


def _codecs() -> list[tuple[str, str, bool]]:
    import av

    from harness.generate.video import LOSSLESS_CODEC, MP4_CODEC

    missing = [c for c in (MP4_CODEC, LOSSLESS_CODEC) if c not in av.codecs_available]
    state = f"{', '.join(missing)} missing in PyAV" if missing else f"{MP4_CODEC}, {LOSSLESS_CODEC}"
    return [("codecs", state, not missing)]


def _installed() -> list[tuple[str, str, bool]]:
    from harness.errors import HarnessError
    from harness.models.table import model_spec
    from harness.plan.registry import methods
    from harness.plan.suites import bundled, load_suite

    rows = [("methods", ", ".join(methods()) or "none are installed", bool(methods()))]
    try:
        spec = model_spec("shapes")
        rows.append(("model shapes", f"revision {spec.revision[:12]} in {spec.repo}", True))
    except HarnessError as cause:
        rows.append(("model shapes", cause.message, False))
    for name, row in bundled().items():
        try:
            suite = load_suite(name, role=row.role)
            rows.append((name, f"{len(suite.prompts)} prompts, digest holds", True))
        except HarnessError as cause:
            rows.append((name, cause.message, False))
    return rows
