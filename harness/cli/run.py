"""``harness run``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from harness.errors import HarnessError
from harness.spec import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from harness.plan.prepared import Prepared

SOME_FAILED = 1
_Command = TypeVar("_Command", bound="Callable[..., Any] | click.Command")


class InterruptedRunError(HarnessError):
    """Somebody stopped the run."""

    exit_code = 130


class CommaList(click.ParamType[tuple[Any, ...]]):
    """``a,b,c``; the option may also be repeated.

    Args:
        item: Turns one part into a value.
    """

    name = "a,b,..."

    def __init__(self, item: type = str) -> None:
        self.item = item

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Split at commas."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        if not parts:
            self.fail("is empty", param, ctx)
        try:
            return tuple(self.item(part) for part in parts)
        except ValueError:
            self.fail(f"'{value}' is no list of {self.item.__name__}", param, ctx)


def _joined(
    ctx: click.Context, param: click.Parameter, value: tuple[tuple[Any, ...], ...]
) -> tuple[Any, ...] | None:
    del ctx, param
    return tuple(item for group in value for item in group) or None


def _list(
    flag: str, text: str, item: type = str, name: str | None = None
) -> Callable[[_Command], _Command]:
    names = (flag,) if name is None else (flag, name)
    return click.option(*names, type=CommaList(item), multiple=True, callback=_joined, help=text)


@click.command()
@_list(
    "--methods",
    "Methods, by name or module:attribute; 'all' and 'baselines' stand for many.  "
    "[default: s2q,ptq4dit]",
)
@_list("--bits", "Widths, weights then activations.  [default: w4a6]")
@_list("--model", "Bundled name or folder in diffusers format.  [default: shapes]", name="models")
@click.option(
    "--suite",
    help="Prompt suite or file; see `harness list suites`.  [default: shapes-eval; eval-general "
    "for models of real video]",
)
@click.option(
    "--limit", type=click.IntRange(min=1), help="First n prompts.  [default: 16; all of VBench's]"
)
@_list(
    "--seeds",
    "Seeds of the initial noise.  [default: 0; on VBench's prompts as many as it asks for]",
    item=int,
)
@_list(
    "--metrics",
    "What is judged beside fidelity: vbench-8, vbench-16, dimensions of VBench, flow_score, clip, "
    "fvd, none.  [default: what fits the suite]",
)
@click.option(
    "--config", type=click.Path(path_type=Path), help="Experiment file (TOML); flags override it."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/<run id>]"
)
@click.option(
    "--device",
    help="cpu, cuda, cuda:<index>; several of one kind as "
    "cuda:0,cuda:1.  [default: a GPU if there is one]",
)
@click.option(
    "--offload",
    type=click.Choice(["none", "components", "blocks"]),
    help="What of a model waits in the host's memory.  [default: none]",
)
@click.option(
    "--kernels",
    help="What computes quantized layers: auto, off (simulate), or a kernel of `harness list "
    "kernels`.  [default: auto]",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Workers side by side.")
@click.option("--no-baselines", is_flag=True, help="Leave out the control and rtn rows.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
def run(config: Path | None, dry_run: bool, no_baselines: bool, **flags: Any) -> int:
    """Quantize a model with each method, generate the same clips, compare them.

    The same command again goes on where it stopped; a longer one makes only what is new.
    --debug shows tracebacks.
    """
    from rich.console import Console

    from harness.plan.estimate import plan_line
    from harness.plan.experiment import Flags, resolve
    from harness.plan.experiment_file import ExperimentFile, load_file
    from harness.run.run import prepare
    from harness.store.store import Store

    file = load_file(config) if config else ExperimentFile()
    baselines = False if no_baselines else None
    experiment = resolve(file, Flags(**flags, baselines=baselines))
    store = Store()
    prepared = prepare(experiment, store)
    console = Console()
    console.print(
        plan_line(prepared.plan, prepared.guess), highlight=False, markup=False, soft_wrap=True
    )
    if dry_run:
        _print_plan(console, prepared, store)
        return 0
    return _execute(prepared, store, console)


def _execute(prepared: Prepared, store: Any, console: Any) -> int:
    from harness.report import render_run
    from harness.run.progress import ProgressMonitor
    from harness.run.run import execute, preflight

    preflight(prepared, store)
    signal.signal(signal.SIGTERM, _terminate)
    published = len(store.journal())
    try:
        with ProgressMonitor(prepared) as monitor:
            done = execute(prepared, store, monitor, ["harness", *sys.argv[1:]])
    except KeyboardInterrupt:
        kept = sum(r["event"] == "published" for r in store.journal()[published:])
        raise InterruptedRunError(
            f"interrupted; the workers are stopped, the {kept} results they published are kept",
            "the same command goes on from there",
        ) from None
    render_run(prepared.folder, console)
    for text in [*done.provenance["failures"], *done.provenance["warnings"]]:
        console.print(f"warning: {text}", highlight=False, markup=False, soft_wrap=True)
    console.print(str(prepared.folder), highlight=False, markup=False, soft_wrap=True)
    fine = (Status.OK, Status.UNSUPPORTED)
    failed = any(cell.status not in fine for cell in done.cells) or done.provenance["failures"]
    return SOME_FAILED if failed else 0


def _terminate(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _print_plan(console: Any, prepared: Prepared, store: Any) -> None:
    from rich.table import Table

    from harness.plan.cost_sheet import plan_costs
    from harness.plan.model_sheet import lines as sheet_lines
    from harness.plan.model_sheet import model_sheet
    from harness.plan.why import made_again
    from harness.report.terminal import print_whole

    plan, guess = prepared.plan, prepared.guess
    given = dict(plan.experiment.gen)
    again = made_again(plan, store)
    table = Table(box=None, pad_edge=False)
    for head in ("cell", "quantize", "clips to make", "clips found", "note"):
        table.add_column(head)
    for planned in plan.cells:
        found = len(planned.task.clips) - planned.missing_clips
        quantize = "yes" if planned.needs_quantizing else "-"
        row = [planned.cell.id, quantize, str(planned.missing_clips), str(found)]
        why = again.get(planned.cell.id, "")
        table.add_row(*row, planned.unsupported or (f"again: {why}" if why else ""))
    print_whole(table, console)
    lines = [f"encode: {name}: {len(task.texts)} texts" for name, task in plan.texts.items()]
    lines += [f"record calibration: {name}" for name in plan.pools]
    lines += [f"judge {name}: {count} values" for name, count in plan.scores.items()]
    lines += plan.vbench.remarks
    lines += [
        f"device {','.join(device.id for device in plan.devices)} ({plan.device.name}), "
        f"{plan.jobs} workers of "
        f"{plan.experiment.execution.threads} threads",
        f"disk: at most {guess.disk_bytes / 1e6:.0f} MB in {store.root}",
        f"run folder: {prepared.folder}",
    ]
    for model in plan.models:
        sheet = model_sheet(model, plan.gens[model.name], given)
        lines += ["", *sheet_lines([*sheet, *plan_costs(plan, model, store)])]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
