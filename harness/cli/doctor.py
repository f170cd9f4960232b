"""``harness doctor``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

_GB = 1e9
_CLIPS = 8
MARKS = {True: "ok  ", False: "FAIL", None: "--  "}  # the last: optional, and not there
_BROKEN = 4  # exit code

if TYPE_CHECKING:
    from collections.abc import Callable

    Check = tuple[str, str, bool | None]


@click.command()
@click.option("--report", is_flag=True, help="Print all that a bug report needs, nothing private.")
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
    report: bool,
    vbench: bool,
    weights: Path | None,
    clips: int | None,
    dimensions: tuple[str, ...],
) -> int:
    """Say what this machine has and what it lacks; exits 4 when something is broken."""
    from harness.errors import UsageError

    if vbench:
        from harness.vbench.selfcheck import run

        if report:
            raise UsageError("--report and --vbench print different things", "give one of them")
        return run(python=None, weights=weights, clips=clips or _CLIPS, dimensions=dimensions)
    if weights is not None or clips is not None or dimensions:
        raise UsageError("--weights, --clips and --dimension go with --vbench", "add --vbench")
    rows = checked()
    if report:
        from harness.cli.doctor_report import report_text

        click.echo(report_text(lines(rows)))
    else:
        for line in lines(rows):
            click.echo(line)
    return _BROKEN if any(fine is False for _, _, fine in rows) else 0


def checked() -> list[Check]:
    """Every check of this machine: name, state, and whether it is fine.

    A check that cannot be made, because what it asks is broken, is a row that is not fine.
    """
    rows: list[Check] = []
    for check in (_libraries, _machine, _store, _codecs, _installed, _kernels, _scoring):
        rows += attempted(check.__name__.strip("_"), check)
    return rows


def attempted(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """Rows of a check; one row under its name that says why where it raises."""
    try:
        return check()
    except Exception as cause:  # whatever is broken here is what the reader wants to know
        first = next(iter(str(cause).splitlines()), "")
        return [(name, f"{type(cause).__name__}: {first}", False)]


def lines(rows: list[Check]) -> list[str]:
    """Rows as text: mark, name, state."""
    width = max(len(name) for name, _, _ in rows)
    return [f"{MARKS[fine]}  {name:<{width}} {state}" for name, state, fine in rows]


def _libraries() -> list[Check]:
    from harness.store import provenance

    rows: list[Check] = [("python", sys.version.split()[0], sys.version_info >= (3, 11))]
    for name in ("torch", "diffusers", "transformers", "torchmetrics", "scipy", "pandas", "av"):
        found = provenance.package_version(name)
        rows.append((name, found or "is not installed", bool(found)))
    decord = provenance.package_version("decord")
    return [*rows, ("decord", decord or "is not installed; PyAV reads the clips", True)]


def _machine() -> list[Check]:
    from harness.store import provenance

    gpus = provenance.cuda_names()
    return [
        ("gpu", ", ".join(gpus) or "none; everything runs on the processor", True),
        ("cpu", f"{provenance.cpu_name()}, {provenance.cores()} cores", True),
    ]


def _kernels() -> list[Check]:
    from harness.kernels.dispatch import kernel_states

    return [
        (
            f"kernel {one.name}",
            f"{one.lanes} lanes on {', '.join(one.devices)}" if one.devices else one.missing,
            True if one.devices else None,
        )
        for one in kernel_states()
    ]


def _scoring() -> list[Check]:
    from harness.cli import doctor_vbench
    from harness.score.lpips import lpips_missing

    lpips = lpips_missing()
    return [("lpips", lpips or "weights are here", None if lpips else True), *doctor_vbench.rows()]


def _store() -> list[Check]:
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


def _codecs() -> list[Check]:
    import av

    from harness.generate.video import LOSSLESS_CODEC, MP4_CODEC

    missing = [c for c in (MP4_CODEC, LOSSLESS_CODEC) if c not in av.codecs_available]
    state = f"{', '.join(missing)} missing in PyAV" if missing else f"{MP4_CODEC}, {LOSSLESS_CODEC}"
    return [("codecs", state, not missing)]


def _installed() -> list[Check]:
    from harness.errors import HarnessError
    from harness.models.table import model_spec
    from harness.plan.registry import methods
    from harness.plan.suites import bundled, load_suite

    rows: list[Check] = [("methods", ", ".join(methods()) or "none are installed", bool(methods()))]
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
