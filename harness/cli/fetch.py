"""``harness fetch``: what is too large, or under too narrow a licence, to come with the package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click

from harness.cli.lazy import LazyGroup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.vbench.environment import Environment

COMMANDS = {
    "vbench": ("harness.cli.fetch:vbench", "Build the environment in which VBench scores."),
    "vbench-weights": (
        "harness.cli.fetch_weights:vbench_weights",
        "Fetch the weights of VBench's dimensions.",
    ),
    "clip-weights": ("harness.cli.fetch:clip_weights", "Fetch the model of CLIPSIM and CLIP-Temp."),
    "fvd-weights": ("harness.cli.fetch:fvd_weights", "Fetch the network of the Frechet distance."),
}
# As the installed packages say: in their metadata, their licence files or their sources.
LICENCES = (
    "vbench: Apache-2.0; inside it, with terms of their own,",
    "  AMT (motion_smoothness): CC BY-NC 4.0 in its own repository, no commercial use,",
    "  GRiT's bifpn_fcos.py (detector dimensions): BSD-2-Clause, no commercial use",
    "pyiqa 0.1.10 (imaging_quality): CC BY-NC-SA 4.0 and S-Lab 1.0, no commercial use",
    "easydict: LGPL-3.0; openai-clip, pycocoevalcap: none is stated in their packages",
    "torch, torchvision, transformers, timm, decord, opencv, fairscale: BSD or Apache-2.0",
    "the weights have licences too: harness fetch vbench-weights --dry-run",
)
_GB = 1e9
_LINE_INTERVAL_S = 30.0


@click.group(cls=LazyGroup, table=COMMANDS)
def fetch() -> None:
    """Fetch what scores: VBench's environment, and weights."""


@click.command()
@click.option("--python", help="Python 3.11 to build with.  [default: this one, else python3.11]")
@click.option("--use", help="Score with this interpreter, which has vbench; nothing is built.")
@click.option("--force", is_flag=True, help="Remove what is there and build anew.")
def vbench(python: str | None, use: str | None, force: bool) -> None:
    """Build the environment in which VBench scores.

    VBench pins a transformers and a numpy that no current diffusers accepts, so it gets an
    environment of its own. An interrupted build goes on where it stopped.

    Packages come from the index that pip is configured for. PyPI has torch for CUDA; the much
    smaller build for a machine without a GPU is chosen with

        export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
    """
    from harness.errors import UsageError
    from harness.vbench import build, environment

    if use is not None:
        if python is not None or force:
            raise UsageError("--use builds nothing", "leave out --python and --force")
        found = environment.register(use)
        _end(found, f"scoring with {found.python}")
        return
    if not force and build.is_built():
        found = build.build(python=None, force=False, progress=lambda share, text: None)
        _end(found, f"already built in {environment.folder()}")
        return
    base = build.base_interpreter(python)
    for line in _announcement(base):
        click.echo(line)
    start = time.monotonic()
    with _Bar() as bar:
        found = build.build(python=python, force=force, progress=bar.move)
    size = build.size_bytes(environment.folder()) / _GB
    _end(found, f"built in {time.monotonic() - start:.0f} s, {size:.1f} GB")


@click.command()
@click.option(
    "--from",
    "folder",
    type=click.Path(path_type=Path),
    help="A checkpoint that is there, in the layout of transformers; downloads nothing.",
)
def clip_weights(folder: Path | None) -> None:
    """Fetch the model of CLIPSIM and CLIP-Temp."""
    from harness.score.clip_weights import fetch_clip

    click.echo(fetch_clip(folder))


@click.command()
def fvd_weights() -> None:
    """Fetch the network of the Frechet distance: torchvision's r3d_18."""
    from harness.score.fvd_weights import fetch_fvd

    click.echo(fetch_fvd())


def _announcement(base: Path) -> Iterator[str]:
    """What will be installed, where, how large it is and what its licences allow."""
    from harness.vbench import build, environment, pip
    from harness.vbench.dimensions import VBENCH_VERSION

    packages = len(pip.pins(build.LOCK))
    yield f"what      vbench {VBENCH_VERSION}, the official package, and what it needs:"
    yield f"          {packages} packages at the versions that were tested here, by {base}"
    yield f"where     {environment.folder()}"
    # Measured: wheels and files of this lock with the CPU build of torch; the sizes that PyPI gives
    # for torch 2.13.0, torchvision 0.28.0 and what they require.
    yield "size      0.64 GB to download and 2.2 GB on disk with a CPU build of torch;"
    yield "          PyPI's build for CUDA is 2.8 GB to download (--help says how to choose)"
    for n, text in enumerate(LICENCES):
        yield f"{'' if n else 'licences':<10}{text}"


class _Bar:
    """Shows a build while it works: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._terminal = console.is_terminal
        self._task = self._progress.add_task("", total=1.0)
        self._phase, self._said = "", 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def move(self, share: float, text: str) -> None:
        """Show how far it is; ``text`` begins with the phase, up to the first comma."""
        self._progress.update(self._task, completed=share, description=text)
        phase = text.partition(",")[0]
        due = phase != self._phase or time.monotonic() - self._said >= _LINE_INTERVAL_S
        if not self._terminal and due:
            self._phase, self._said = phase, time.monotonic()
            click.echo(f"{share:4.0%}  {text}", err=True)


def _end(found: Environment, how: str) -> None:
    """The last line: how it went and what will score."""
    for problem in found.problems:
        click.echo(f"warning: {problem}", err=True)
    click.echo(f"{found.line}: {how}")
