"""``harness doctor``."""

from __future__ import annotations

import shutil
import sys

import click

_GB = 1e9


@click.command()
def doctor() -> int:
    """Say what this machine has and what it lacks; exits 4 when a run cannot work."""
    problems = 0
    for name, state, fine in _checks():
        click.echo(f"{'ok  ' if fine else 'FAIL'}  {name:<14} {state}")
        problems += not fine
    return 4 if problems else 0


def _checks() -> list[tuple[str, str, bool]]:
    from harness import provenance
    from harness.stages.score import lpips_missing

    rows = [("python", sys.version.split()[0], sys.version_info >= (3, 11))]
    for name in ("torch", "diffusers", "transformers", "torchmetrics", "scipy", "pandas", "av"):
        found = provenance.package_version(name)
        rows.append((name, found or "is not installed", bool(found)))
    decord = provenance.package_version("decord")
    rows.append(("decord", decord or "is not installed; PyAV reads the clips", True))
    rows.append(("lpips", lpips_missing() or "weights are here", True))
    gpus = provenance.cuda_names()
    rows.append(("gpu", ", ".join(gpus) or "none; everything runs on the processor", True))
    rows.append(("cpu", f"{provenance.cpu_name()}, {provenance.cores()} cores", True))
    return [*rows, *_store(), *_codecs(), *_installed()]


def _store() -> list[tuple[str, str, bool]]:
    from harness.errors import HarnessError
    from harness.store import Store

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

    from harness.video import LOSSLESS_CODEC, MP4_CODEC

    missing = [c for c in (MP4_CODEC, LOSSLESS_CODEC) if c not in av.codecs_available]
    state = f"{', '.join(missing)} missing in PyAV" if missing else f"{MP4_CODEC}, {LOSSLESS_CODEC}"
    return [("codecs", state, not missing)]


def _installed() -> list[tuple[str, str, bool]]:
    from harness.errors import HarnessError
    from harness.models.table import model_spec
    from harness.registry import methods
    from harness.suites import bundled, load_suite

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
