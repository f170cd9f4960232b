"""``harness doctor --vbench``: the official way and ours on the same clips, values and seconds.

The official way calls ``compute_<dimension>`` of the installed package for one dimension after the
other; ours is what a run does. Each is one process of the scoring interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.vbench import environment
from harness.vbench import weights as supply
from harness.vbench.dimensions import DIMENSIONS
from harness.vbench.interpreter import WORKER, worker_environment
from harness.vbench.synthetic import FRAMES, ask

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

OURS, OFFICIAL = "shared", "official"
REST = "start and end"
TOLERATED = ("skipped", "unsupported")
CALLED_OFF = (
    "color",
    "the official function divides by zero where no clip shows the object, as none does here",
)


@dataclass(kw_only=True)
class Watched:
    """What a process of the worker said, and when.

    Attributes:
        values: By dimension and key; None where a clip has no such value.
        seconds: By dimension, and of the rest; from one answer to the next.
        troubles: Status and line by dimension.
        processor_s: Seconds of the processor in all.
    """

    values: dict[str, dict[str, float | None]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    troubles: dict[str, tuple[str, str]] = field(default_factory=dict)
    processor_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Seconds of the whole process."""
        return sum(self.seconds.values())

    def hear(self, event: Mapping[str, Any], seconds: float) -> None:
        """Take one answer, so many seconds after the one before."""
        kind, dimension = event["event"], event.get("dimension", REST)
        self.seconds[dimension] = self.seconds.get(dimension, 0.0) + seconds
        if kind == "trouble":
            self.troubles[dimension] = (event["status"], event["detail"])
        elif kind in ("score", "unscorable"):
            self.values.setdefault(dimension, {})[event["key"]] = event.get("value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One dimension both ways.

    Attributes:
        difference: The largest between two values; None where not every value has its partner.
        trouble: Why it was not scored, or empty.
    """

    dimension: str
    official_s: float
    ours_s: float
    difference: float | None
    trouble: str = ""
    failed: bool = False

    @property
    def line(self) -> str:
        """For the table."""
        if self.trouble:
            return f"{self.dimension:<24} {self.trouble}"
        equal = {None: "no", 0.0: "yes"}.get(self.difference, "no")
        apart = "-" if self.difference is None else f"{self.difference:.3g}"
        return f"{self.dimension:<24} {equal:<6} {apart:>10} {_times(self.official_s, self.ours_s)}"


def run(
    *,
    python: str | None = None,
    weights: Path | None = None,
    clips: int = 8,
    dimensions: Sequence[str] = (),
) -> int:
    """Score synthetic clips both ways and print the comparison.

    Args:
        python: Interpreter of the scoring environment, or the registered one.
        weights: Folder of the weights, or the usual one.
        clips: How many to write and score.
        dimensions: All that can be scored here, where none is named.

    Returns:
        1 where a dimension failed, or values differ on the CPU; 0 otherwise.

    Raises:
        HarnessError: There is no scoring environment, or nothing can be scored.
    """
    import click

    found = environment.find(python)
    if found is None:
        raise HarnessError(environment.missing_line(), "run that command")
    place = _place(weights)
    chosen, left_out = choose(dimensions or tuple(DIMENSIONS), place, detector=found.detector)
    for line in left_out:
        click.echo(f"--  {line}")
    if not chosen:
        raise HarnessError("nothing can be scored here", "see the lines above")
    device = "cuda:0" if found.cuda else "cpu"
    click.echo(f"{found.line}; {device}; {clips} clips of {FRAMES} frames; weights in {place}")
    _read_once(chosen, place)
    with tempfile.TemporaryDirectory() as folder:
        asked = ask(Path(folder), chosen, clips, found.full_info)
        job = {"device": device, "weights": str(place.absolute()), "clips": asked}
        # Ours first: what is cold then is warm for the other.
        ours = watch(found.python, Path(folder), {**job, "scorer": OURS})
        official = watch(found.python, Path(folder), {**job, "scorer": OFFICIAL})
    rows = [compare(d, official, ours) for d in chosen]
    for line in table(rows, official, ours):
        click.echo(line)
    differs = any(r.difference != 0 for r in rows if not r.trouble)
    return int(any(r.failed for r in rows) or (differs and device == "cpu"))


def choose(wanted: Iterable[str], place: Path, *, detector: bool) -> tuple[list[str], list[str]]:
    """Which dimensions can be scored, weight-free ones first, and why not the others.

    Raises:
        UsageError: A dimension is unknown.
    """
    chosen, left_out = [], []
    for name in sorted(dict.fromkeys(wanted), key=lambda n: bool(supply.ids_of([n]))):
        ids = supply.ids_of([name])
        if name not in DIMENSIONS:
            left_out.append(f"{name}: the official package has no such dimension to compare with")
        elif name == CALLED_OFF[0]:
            left_out.append(": ".join(CALLED_OFF))
        elif DIMENSIONS[name].detector and not detector:
            left_out.append(f"{name}: needs detectron2, which is not installed")
        elif supply.missing(ids, place):
            left_out.append(supply.missing_line(name, ids, place))
        else:
            chosen.append(name)
    return chosen, left_out


def watch(python: Path, folder: Path, job: Mapping[str, Any]) -> Watched:
    """Run the worker and time its answers.

    Raises:
        HarnessError: The worker failed or broke off.
    """
    path = folder / f"{job['scorer']}.json"
    common = {"schema": 1, "threads": 1, "precision": "float32", "batch": 1, "parent": os.getpid()}
    scratch = str(folder / f"scratch-{job['scorer']}")
    path.write_text(json.dumps({**common, "scratch": scratch, **job}), encoding="utf-8")
    watched, event = Watched(), {"event": ""}
    printed = folder / "printed.txt"
    with printed.open("w", encoding="utf-8") as errors:
        last = time.monotonic()
        process = subprocess.Popen(
            [str(python), *WORKER, str(path)],
            env=worker_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout as pipe:
            for line in pipe:
                event = json.loads(line)
                # The first sign of life ends the start; later progress says nothing of time.
                if event["event"] == "progress" and watched.seconds:
                    continue
                now = time.monotonic()
                watched.hear(event, now - last)
                last = now
        # `wait4` is the only way to the processor time of one child.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        watched.processor_s = usage.ru_utime + usage.ru_stime
        if process.returncode or event["event"] != "done":
            lines = printed.read_text(encoding="utf-8").strip().splitlines() or ["nothing"]
            raise HarnessError(
                f"the scoring process ended with {process.returncode}",
                f"it said: {event.get('detail') or lines[-1]}",
            )
    return watched


def compare(dimension: str, official: Watched, ours: Watched) -> Compared:
    """One dimension both ways."""
    trouble, failed = "", False
    for way, watched in (("official", official), ("ours", ours)):
        if not trouble and dimension in watched.troubles:
            status, detail = watched.troubles[dimension]
            trouble, failed = f"{way}: {status}: {detail}", status not in TOLERATED
    theirs, mine = official.values.get(dimension, {}), ours.values.get(dimension, {})
    return Compared(
        dimension=dimension,
        official_s=official.seconds.get(dimension, 0.0),
        ours_s=ours.seconds.get(dimension, 0.0),
        difference=_difference(theirs, mine),
        trouble=trouble,
        failed=failed,
    )


def _difference(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> float | None:
    """The largest between two values; None where one has no partner."""
    if not a or a.keys() != b.keys():
        return None
    largest = 0.0
    for key, value in a.items():
        other = b[key]
        if (value is None) != (other is None):
            return None
        if value is not None and other is not None:
            largest = max(largest, abs(value - other))
    return largest


def table(rows: Sequence[Compared], official: Watched, ours: Watched) -> list[str]:
    """The comparison, line by line."""
    head = f"{'dimension':<24} {'equal':<6} {'difference':>10} {'official':>11} {'ours':>11}"
    start = _times(official.seconds.get(REST, 0.0), ours.seconds.get(REST, 0.0))
    total = _times(official.total_s, ours.total_s)
    processor = _times(official.processor_s, ours.processor_s)
    return [
        f"{head} {'speed-up':>9}",
        *(row.line for row in rows),
        f"{REST:<24} {'':<6} {'':>10} {start}",
        f"{'all':<24} {'':<6} {'':>10} {total}",
        f"{'all, processor time':<24} {'':<6} {'':>10} {processor}",
    ]


def _times(official_s: float, ours_s: float) -> str:
    speed_up = f"{official_s / ours_s:.2f}" if ours_s else "-"
    return f"{official_s:>9.1f} s {ours_s:>9.1f} s {speed_up:>9}"


def _place(folder: Path | None) -> Path:
    return supply.folder() if folder is None else folder


def _read_once(dimensions: Sequence[str], place: Path) -> None:
    """Read the weights once, so that neither way waits for a cold disk."""
    for name in supply.ids_of(dimensions):
        for file in supply.table()[name].files:
            path = file.here(place)
            if path is not None and path.is_file():
                with path.open("rb") as data:
                    while data.read(1 << 24):
                        pass
