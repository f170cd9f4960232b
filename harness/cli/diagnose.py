"""``harness diagnose``: where, when and in which branch a quantized model goes wrong."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.run import CommaList
from harness.cli.targets import one_target
from harness.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.cli.targets import Target
    from harness.report.spread import SeedSpread
    from harness.spec import GenSpec, ModelSpec, Prompt


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET [OTHER]")
@click.option(
    "--prompts", type=click.IntRange(min=1), default=2, show_default=True, help="First n prompts."
)
@click.option("--suite", help="Prompt suite or file.  [default: that of the run]")
@click.option("--steps", type=CommaList(int), default=(), help="Step counts to compare: 10,20,50.")
@click.option("--model", help="Model of an artifact that lies outside a store.")
@click.option("--device", help="cpu, cuda or cuda:<index>.  [default: a GPU if there is one]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the files.  [default: diagnosis]"
)
def diagnose(
    targets: tuple[str, ...],
    prompts: int,
    suite: str | None,
    steps: tuple[int, ...],
    model: str | None,
    device: str | None,
    out: Path | None,
) -> None:
    """Hold a quantized model against full precision, step by step and layer by layer.

    TARGET is an artifact folder or RUN:CELL; with OTHER, two of one model stand side by side. The
    tables are printed; --out gets them as CSV, with a heat map of layers over timesteps.
    """
    from harness.models.table import model_spec
    from harness.plan.experiment import default_suite
    from harness.plan.suites import load_suite
    from harness.report import diagnosis

    if len(targets) > 2:
        raise UsageError(f"{len(targets)} artifacts were given", "give one, or two of one model")
    chosen = [one_target(target) for target in targets]
    spec = model_spec(_model_of(chosen, model))
    gen = _gen_of(chosen, spec)
    named = suite or _suite_of(chosen) or default_suite((spec.name,))
    texts = load_suite(named, limit=prompts).prompts
    if any(n < 1 for n in steps):
        raise UsageError(f"step counts {','.join(map(str, steps))}", "give numbers from 1 up")
    folder = (out or Path("diagnosis")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    names = [target.name for target in chosen]
    if len(set(names)) != len(names):
        names = [f"{name}#{i}" for i, name in enumerate(names, start=1)]
    found = _work(chosen, names, spec, gen, texts, named, steps, device)
    spreads = {n: _spread(target) for n, target in zip(names, chosen, strict=True)}
    diagnosis.write(folder, names, found, spreads)
    click.echo(diagnosis.text(names, found, spreads))
    click.echo(str(folder))


def _work(
    chosen: Sequence[Target],
    names: Sequence[str],
    spec: ModelSpec,
    gen: GenSpec,
    texts: Sequence[Prompt],
    suite: str,
    steps: Sequence[int],
    device: str | None,
) -> list[Any]:
    """Say what it will take, then do it."""
    from rich.console import Console
    from rich.progress import Progress

    from harness.artifact.diagnose import denoiser_calls, other_counts
    from harness.artifact.diagnose import diagnose as work
    from harness.models.load import load_pipeline
    from harness.models.sample import denoiser_step
    from harness.store.provenance import find_device

    place = find_device(device)
    others = other_counts(steps, gen)
    calls = denoiser_calls(len(texts), gen.steps, len(chosen), others)
    click.echo(
        f"{' and '.join(names)} against full precision of {spec.name} on {place.name}: "
        f"{len(texts)} prompts of {suite}, {gen.steps} steps, guidance {gen.guidance:g}"
    )
    for prompt in texts:
        click.echo(f"  {prompt.id}: {prompt.text}")
    parts = {"text", "denoiser"}
    pipeline = load_pipeline(spec, device=place.id, dtype=gen.dtype, parts=parts)
    step = denoiser_step(pipeline, gen)
    step()
    started = time.perf_counter()
    step()
    seconds = (time.perf_counter() - started) * calls
    click.echo(
        f"{calls} denoiser calls, about {max(1, round(seconds / 60))} min by one call of full "
        "precision just timed; simulated low precision takes longer"
    )
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory() as work_folder,
        Progress(console=console, disable=not console.is_terminal, transient=True) as bar,
    ):
        task = bar.add_task("sampling", total=1.0)

        def report(fraction: float, text: str) -> None:
            bar.update(task, completed=fraction, description=text)

        return work(
            pipeline,
            [target.folder for target in chosen],
            texts,
            gen,
            family=spec.family,
            counts=steps,
            folder=Path(work_folder),
            progress=report,
        )


def _model_of(chosen: Sequence[Target], model: str | None) -> str:
    """The model that all artifacts belong to.

    Raises:
        UsageError: It is not known, or they belong to two.
    """
    names = dict.fromkeys(model or target.model for target in chosen)
    if len(names) > 1:
        raise UsageError(f"the artifacts belong to {' and '.join(names)}", "give two of one model")
    name = next(iter(names))
    if not name:
        raise UsageError(
            f"artifact '{chosen[0].folder}' does not lie in a store, so its model is not recorded",
            "give --model",
        )
    return name


def _gen_of(chosen: Sequence[Target], spec: ModelSpec) -> GenSpec:
    """The generation settings that all artifacts were made for.

    Raises:
        UsageError: They were made for different ones.
    """
    found = [target.gen(spec) for target in chosen]
    if any(gen != found[0] for gen in found):
        raise UsageError(
            "the artifacts were made for different generation settings", "give two of one run"
        )
    return found[0]


def _suite_of(chosen: Sequence[Target]) -> str:
    from harness.store.records import load_run

    run = next((target.run for target in chosen if target.run is not None), None)
    return "" if run is None else str(load_run(run).experiment.get("suite", ""))


def _spread(target: Target) -> list[SeedSpread]:
    from harness.report.spread import seed_spread
    from harness.store.records import load_run

    return [] if target.run is None else seed_spread(load_run(target.run), target.name)
