"""``harness list``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from harness.errors import HarnessError
from harness.spec import FP

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.plan.registry import MethodSupport

WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16)
BITS = tuple(f"w{w}a{a}" for w in WIDTHS for a in WIDTHS if (w, a) != (16, 16))
SHOWN = ("w8a8", "w4a8", "w4a6", "w4a4", "w8a16", "w4a16")
"""Widths whose refusals are explained; the others follow."""

NAMED = "\0"  # stands where a reason names the width it is about


@click.command(name="list")
@click.argument("what", type=click.Choice(["methods", "models", "suites", "metrics", "kernels"]))
def listing(what: str) -> None:
    """List methods, models, prompt suites, metrics or kernels.

    Methods are asked once what they support, which takes some seconds; the answers are remembered
    until a method's source or what is installed changes.
    """
    if what == "methods":
        _methods()
        return
    found = {"models": _models, "suites": _suites, "metrics": _metrics, "kernels": _kernels}
    rows = found[what]()
    width = max((len(name) for name, _ in rows), default=0)
    for name, about in rows:
        click.echo(f"{name:<{width}}  {about}".rstrip())


def _methods() -> None:
    """The matrix of methods and families, then the reasons."""
    from harness.models.families import FAMILIES
    from harness.plan.registry import methods, support
    from harness.store.store import Store

    families, cache = tuple(FAMILIES), Store().root / "facts"
    known, broken = [], []
    for name in methods():
        try:
            known.append(support(name, families, BITS, cache))
        except HarnessError as cause:
            broken.append((name, cause))
    heads = ["method", *families, "calibration", "widths"]
    rows = [_row(found, families) for found in known]
    rows += [[name, *("broken" for _ in families), "", ""] for name, _ in broken]
    sizes = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        click.echo("  ".join(f"{text:<{n}}" for text, n in zip(row, sizes, strict=True)).rstrip())
    reasons = [*_reasons(known, families), *(f"{n}: {cause.message}" for n, cause in broken)]
    for text in ["", *reasons, *_origins()]:
        click.echo(text)


def _row(found: MethodSupport, families: tuple[str, ...]) -> list[str]:
    if found.unquantized:
        return [found.name, *("yes" for _ in families), "none", FP]
    made = [b for b in BITS if any(b not in found.refused[f] for f in families)]
    answers = ["no" if len(found.refused[f]) == len(BITS) else "yes" for f in families]
    need = "needed" if found.needs_calibration else "none"
    return [found.name, *answers, need, widths_text(made) or "-"]


def _reasons(known: list[MethodSupport], families: tuple[str, ...]) -> list[str]:
    """Every refusal of a family, and of one of the usual widths on a family that is supported."""
    lines = []
    for found in known:
        groups: dict[str, list[str]] = {}
        for family in () if found.unquantized else families:
            for text in _family_reasons(found.refused[family]):
                groups.setdefault(text, []).append(family)
        for text, names in groups.items():
            place = "" if len(names) == len(families) else f" on {', '.join(names)}"
            lines.append(f"{found.name}{place}: {text}")
    return lines


def _family_reasons(refused: dict[str, str]) -> list[str]:
    """Why not, for one method on one family; widths with the same reason but for their name once.

    A family that is refused at every width is explained by what the fewest widths are refused for:
    the others are refused for not being those.
    """
    whole = len(refused) == len(BITS)
    groups: dict[str, list[str]] = {}
    for bits in BITS if whole else SHOWN:
        if bits in refused:
            groups.setdefault(refused[bits].replace(bits, NAMED), []).append(bits)
    if whole:
        few = min(groups, key=lambda reason: len(groups[reason]))
        at = "" if len(groups) == 1 else f" at {', '.join(groups[few])}"
        return [f"no{at}: {few.replace(NAMED, groups[few][0] if at else 'this')}"]
    return [
        f"not at {', '.join(w)}: {reason.replace(NAMED, w[0] if len(w) == 1 else 'this')}"
        for reason, w in groups.items()
    ]


def widths_text(bits: Iterable[str]) -> str:
    """Widths in short: ``w2-8,16 a2-8,16``; weights that go with the same activations together."""
    from harness.bits import BitSpec

    by_weight: dict[int, list[int]] = {}
    for spec in sorted(BitSpec.parse(text) for text in bits):
        by_weight.setdefault(spec.w, []).append(spec.a)
    groups: dict[tuple[int, ...], list[int]] = {}
    for w, activations in by_weight.items():
        # w16a16 is the identity, which is no row: its absence does not set w16 apart.
        whole = activations == [a for a in WIDTHS if a != 16] and w == 16
        groups.setdefault(tuple(WIDTHS if whole else activations), []).append(w)
    return ", ".join(f"w{_span(ws)} a{_span(list(group))}" for group, ws in groups.items())


def _span(numbers: list[int]) -> str:
    """``2-8,16`` for 2, 3, ... 8, 16."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def _origins() -> list[str]:
    """Where the methods that are not part of this package come from."""
    from harness.plan.registry import methods
    from harness.store.provenance import DISTRIBUTION

    return [
        f"{name}: {point.value} of {point.dist.name} {point.dist.version}"
        for name, point in methods().items()
        if point.dist is not None and point.dist.name != DISTRIBUTION
    ]


def _models() -> list[tuple[str, str]]:
    from harness.models.hub import HUB
    from harness.models.table import BUNDLED

    rows = [(name, model.about) for name, model in BUNDLED.items()]
    rows += [(name, model.about) for name, model in HUB.items()]
    return [
        *rows,
        ("<folder>", "a pipeline of a supported family in diffusers format"),
        ("<owner>/<name>", "the same on the hub"),
    ]


def _suites() -> list[tuple[str, str]]:
    from harness.plan.suites import bundled, vbench_rows

    rows = [
        (name, f"{row.role}, version {row.version}, sha256 {row.sha256[:12]}; {row.about}")
        for name, row in bundled().items()
    ]
    return [*rows, *vbench_rows(), ("<file>", "one's own: .txt, .csv or .jsonl")]


def _metrics() -> list[tuple[str, str]]:
    """What is always computed, and what ``--metrics`` takes: what it is, what is still needed."""
    from harness.score.names import SETS
    from harness.score.registry import BrokenScorerError, load_scorer, scorer_names

    always: list[tuple[str, str]] = []
    asked: list[tuple[str, str]] = []
    for name in scorer_names():
        try:
            scorer = load_scorer(name)
        except BrokenScorerError as cause:
            asked.append((name, f"broken: {cause.message}"))
            continue
        rows = always if scorer.always else asked
        rows.append((name, f"{scorer.about or 'a plug-in'}; {_ready(scorer.missing())}"))
        if scorer.always:
            rows += [(f"  {fact.name}", fact.title.replace("\n", " ")) for fact in scorer.metrics]
    sets = [(name, f"for --metrics: {len(of)} dimensions of VBench") for name, of in SETS.items()]
    own = ("<module>:<attribute>", "one's own: docs/adding-a-metric.md")
    return [*always, *sets, *_dimensions(), *asked, own]


def _dimensions() -> list[tuple[str, str]]:
    """VBench's dimensions and what is beside them in the scoring environment."""
    from harness.vbench import environment
    from harness.vbench.dimensions import DIMENSIONS, EXTRA_WEIGHTS, FLOW, STATIC

    found = environment.find()
    detector = found is not None and found.detector
    rows = []
    for name, known in DIMENSIONS.items():
        prompts = "any prompts" if known.custom else "VBench's prompts only"
        if "label" in known.asks:
            prompts = "prompts of the form 'a person is ...'"
        lack = "needs detectron2: docs/vbench.md" if known.detector and not detector else ""
        state = _ready(lack or _lacking(name, known.weights, installed=found is not None))
        rows.append((name, f"VBench {known.kind}, {prompts}; {state}"))
    for name, about in (
        (STATIC, "VBench's filter of the clips flickering is averaged over"),
        (FLOW, "mean optical flow, pixels"),
    ):
        lack = _lacking(name, EXTRA_WEIGHTS[name], installed=found is not None)
        rows.append((name, f"{about}; {_ready(lack)}"))
    return rows


def _ready(lack: str) -> str:
    return lack or "ready"


def _lacking(name: str, ids: Iterable[str], *, installed: bool) -> str:
    """The command that a metric of the scoring environment still needs."""
    from harness.vbench import environment, weights

    if not installed:
        return environment.missing_line()
    if weights.missing(ids, weights.folder()):
        return f"{weights.COMMAND} --dimension {name}"
    return ""


def _kernels() -> list[tuple[str, str]]:
    """What ``--kernels`` takes: what it multiplies, and whether this machine can."""
    from harness.kernels.dispatch import kernel_states

    rows = [("auto", "the first below that can compute a row; simulation where none can")]
    rows += [("off", "every row is simulated: values on their grids in floating point")]
    for one in kernel_states():
        ready = f"runs on {', '.join(one.devices)}" if one.devices else f"not here: {one.missing}"
        about = f"{one.about}; " if one.about else ""
        rows.append((one.name, f"{about}{ready}"))
    return rows
