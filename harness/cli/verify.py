"""``harness verify``."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from harness.cli.targets import ARTIFACT, check_there, of_folder, of_run, split
from harness.errors import HarnessError, UsageError

if TYPE_CHECKING:
    from harness.cli.targets import Target


@click.command()
@click.argument("target")
@click.option("--cell", help="Only this cell of a run folder; the same as RUN:CELL.")
@click.option("--model", help="Model of a single artifact.  [default: as recorded beside it]")
@click.option("--bits", help="Widths of a single artifact.  [default: as recorded beside it]")
@click.option(
    "--format",
    "style",
    type=click.Choice(["terminal", "json", "csv"]),
    default="terminal",
    help="How the layers of a single artifact are printed; how the check went is then on stderr.",
)
@click.option(
    "--kernels",
    help="Also sample a clip of a single artifact on kernels (auto, or a name) and one by "
    "simulation, and compare them.",
)
@click.option("--device", help="Where these are sampled.  [default: a GPU if there is one]")
def verify(
    target: str,
    cell: str | None,
    model: str | None,
    bits: str | None,
    style: str,
    kernels: str | None,
    device: str | None,
) -> int:
    """Check quantized models: every layer once, at its bits, with no more levels than they allow.

    TARGET is a run folder, of which every quantized row is checked, or one artifact: its folder, or
    RUN:CELL. Of one artifact the layers are printed, and what bits they come to: from the artifact
    alone, without the method that made it.
    """
    folder, cell = split(target, cell)
    single = (folder / ARTIFACT).is_file()
    if (kernels or device) is not None and not single and cell is None:
        raise UsageError("--kernels is for a single artifact", f"choose a row: {target}:CELL")
    if kernels is not None:
        from harness.kernels.registry import check_setting

        check_setting(kernels)
    wanted = [] if single else of_run(folder, cell)
    if single or cell is not None:
        one = _with(of_folder(folder), model, bits) if single else wanted[0]
        code = _one(one, style)
        return code or (0 if kernels is None else _compared(one, kernels, device, style))
    if style != "terminal":
        raise UsageError("a whole run has no such format", f"choose a row: {target}:CELL")
    return max([_say(row.name, _problem(row)) for row in wanted])


def _with(target: Target, model: str | None, bits: str | None) -> Target:
    """The target with model and widths as given, where they are.

    Raises:
        UsageError: One of the two is given and the other is not recorded.
    """
    known = replace(target, model=model or target.model, bits=bits or target.bits)
    if (model or bits) and not (known.model and known.bits):
        raise UsageError(
            f"artifact '{target.folder}' does not lie in the store, so its model is not recorded",
            "give --model and --bits",
        )
    return known


def _one(target: Target, style: str) -> int:
    """Check one artifact and print what it holds."""
    from harness.artifact.inspect import clip_traces, inspect
    from harness.report import inspection

    check_there(target)
    store = target.store()
    switched = "step_policy" in json.loads((target.folder / ARTIFACT).read_text(encoding="utf-8"))
    traces = clip_traces(store, target.folder.name) if store is not None and switched else []
    found = inspect(target.folder, traces)
    problem = _problem(target) if target.model and target.bits else None
    if style == "json":
        click.echo(inspection.as_json(found, problem), nl=False)
    elif style == "csv":
        click.echo(inspection.as_csv(found), nl=False)
    else:
        click.echo(inspection.text(found))
    if problem is None:
        unchecked = "its model is not recorded: give --model and --bits to have it checked"
        click.echo(f"not checked  {target.name}: {unchecked}", err=style != "terminal")
        return 0
    return _say(target.name, problem, err=style != "terminal")


def _compared(target: Target, kernels: str, device: str | None, style: str) -> int:
    """Print how far a clip by kernels is from the simulated one."""
    from harness.cli.verify_kernels import agreement, text
    from harness.store.provenance import find_device

    if not target.model:
        raise UsageError("the model of this artifact is not recorded", "give --model and --bits")
    where = find_device(device).id
    for line in text(agreement(target, setting=kernels, device=where)):
        click.echo(line, err=style != "terminal")
    return 0


def _say(name: str, problem: str, *, err: bool = False) -> int:
    """Print how the check of one artifact went; returns the exit code."""
    click.echo(f"FAIL  {name}: {problem}" if problem else f"ok    {name}", err=err)
    return 1 if problem else 0


def _problem(target: Target) -> str:
    """What is wrong with an artifact; empty where nothing is."""
    from harness.artifact.verify import verify as check
    from harness.bits import BitSpec
    from harness.models.load import load_pipeline
    from harness.models.table import model_spec

    try:
        check_there(target)
        spec = model_spec(target.model)
        pipeline = load_pipeline(spec, device="cpu", dtype=spec.gen.dtype, parts={"denoiser"})
        bits = BitSpec.parse(target.bits)
        check(pipeline, target.folder, family=spec.family, bits=bits, fresh=False)
    except HarnessError as cause:
        return cause.message
    return ""
