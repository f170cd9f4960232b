"""Finding methods: installed ones by entry point, one's own by ``module:attribute``.

Nothing here imports a method until it is needed. Planning asks a few facts of a method, and the
answer is kept by digest of the method's source, so that a finished run can be repeated without
importing torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from dataclasses import dataclass, field
from functools import cache as once
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import plug_in
from harness.bits import BitSpec
from harness.errors import HarnessError, unknown_name
from harness.spec import FP, SIMULATED
from harness.store.durable import replace_file
from harness.store.keys import digest, plain
from harness.store.provenance import cuda_names
from harness.store.sources import reach, sources_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.method import Method

GROUP = "harness.methods"
EVERY, BASELINES = "all", "baselines"
"""Names that stand for several methods: every registered one that quantizes, and the baselines."""

REFERENCES = (FP, "control")
_ANSWERING = ("harness.method", "harness.options", "harness.quant.layers.library")
"""What answers about options and support come from, beside a method's own modules."""

_MEMBERS = (
    *("name", "version", "Options", "needs_calibration", "unquantized", "reproduction"),
    *("supports", "quantize_"),
)
"""What a method has; one that subclasses the contract has a default for most of it."""

_BASELINE_PACKAGE = "baselines"


class BrokenMethodError(HarnessError):
    """A registered method cannot be loaded: its import fails, or what it names is no method."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodFacts:
    """What planning needs to know of a method.

    Attributes:
        options: Every option, defaults filled in.
        spelled: Those of them that the artifact's key names.
        unsupported: By bit width: why that row cannot be made.
        quick: Options that the quick calibration budget sets where the row does not; empty under
            the full one.
        quick_s: Guessed seconds of quantizing a bundled model so.
        module: Where it is implemented.
        libraries: Distributions whose own code quantizes and runs the layers.
        work: By bit width: what the calibration computes, the fields of ``harness.method.Work``; a
            width is absent where the method cannot tell.
    """

    name: str
    version: int
    needs_calibration: bool
    unquantized: bool
    options: dict[str, Any]
    unsupported: dict[str, str]
    spelled: dict[str, Any] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)
    quick_s: float = 0.0
    module: str = ""
    libraries: tuple[str, ...] = ()
    work: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def execution(self) -> str:
        """How the layers of its rows compute: ``simulated``, by a library, or nothing of its own.

        Part of the key of every clip: what a kernel computes is another clip.
        """
        if self.unquantized:
            return ""
        return f"library:{','.join(self.libraries)}" if self.libraries else SIMULATED


def methods() -> dict[str, EntryPoint]:
    """Every installed method by the name the user types; imports none of them."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def several(name: str) -> tuple[str, ...]:
    """The methods that ``all`` or ``baselines`` stands for; empty for any other name.

    Baselines come first, the reference rows are not among them, and nothing is imported.
    """
    if name not in (EVERY, BASELINES):
        return ()
    found = {n: p.module.partition(".")[0] for n, p in methods().items() if n not in REFERENCES}
    baselines = [n for n, package in found.items() if package == _BASELINE_PACKAGE]
    if name == BASELINES:
        return tuple(baselines)
    return (*baselines, *(n for n in found if n not in baselines))


def find_method(name: str) -> EntryPoint:
    """The entry point of a method.

    Args:
        name: An installed name, or ``module:attribute`` for a method that is not installed yet.

    Raises:
        UsageError: There is no such name, or it is no ``module:attribute``.
    """
    known = methods()
    if name in known:
        return known[name]
    if ":" in name:
        plug_in.check_spelling("method", name)
        return EntryPoint(name=name, value=name, group=GROUP)
    raise unknown_name("method", name, known)


def load_method(name: str) -> Method:
    """Import a method and make the object.

    Raises:
        UsageError: There is no such name.
        BrokenMethodError: Importing it fails, or what was imported is no method.
    """
    point = find_method(name)
    method: Method = plug_in.load("method", name, point, BrokenMethodError)
    missing = [a for a in sorted(_MEMBERS) if not hasattr(method, a)]
    if missing:
        raise BrokenMethodError(
            f"method '{name}' ({point.value}) lacks {', '.join(missing)}",
            "docs/adding-a-method.md shows a complete method",
        )
    return method


def describe(
    name: str,
    chosen: Mapping[str, Any],
    family: str,
    bits: tuple[str, ...],
    cache: Path,
    *,
    quick: bool,
) -> MethodFacts:
    """What planning needs to know of one row, remembered while the method's source is the same.

    Args:
        name: Installed name or ``module:attribute``.
        chosen: Options that the row gives.
        family: Family of the model.
        bits: Widths of the row.
        cache: Folder of remembered answers.
        quick: Whether the quick calibration budget holds, which the method declares.
    """
    question = _question(name) | {
        "options": plain(dict(chosen)),
        "family": family,
        "bits": list(bits),
        "quick": quick,
    }
    path = cache / f"{digest(question)}.json"
    if question["source"] and path.is_file():
        held = json.loads(path.read_text(encoding="utf-8"))
        return MethodFacts(**{**held, "libraries": tuple(held["libraries"])})
    try:
        facts = _asked(name, chosen, family, bits, quick=quick)
    except HarnessError:
        raise
    except Exception as cause:  # what a plug-in answers with
        raise BrokenMethodError(
            f"method '{name}' fails when it is asked what it runs on: {plug_in.told(cause)}",
            f"correct {plug_in.place_of(cause)}",
        ) from cause
    _remember(path, facts)
    return facts


def _asked(
    name: str, chosen: Mapping[str, Any], family: str, bits: tuple[str, ...], *, quick: bool
) -> MethodFacts:
    """The answers of ``describe`` from the method itself."""
    from harness.method import Method, resolve_options
    from harness.options import spelled

    method = load_method(name)
    # A plug-in need not be a subclass of the contract, and then declares no budget.
    short = dict(getattr(method, "quick", {})) if quick else {}
    resolved = resolve_options(method, {**short, **chosen})
    return MethodFacts(
        name=name,
        version=method.version,
        needs_calibration=method.needs_calibration,
        unquantized=method.unquantized,
        options=plain(dataclasses.asdict(resolved)),
        spelled=plain(spelled(resolved)),
        quick=plain({k: v for k, v in short.items() if k not in chosen}),
        quick_s=float(getattr(method, "quick_s", Method.quick_s)),
        module=find_method(name).module,
        libraries=tuple(getattr(method, "libraries", ())),
        unsupported={
            width: answer.reason
            for width in bits
            if (answer := method.supports(family, BitSpec.parse(width))) is not None
        },
        work=_work(method, resolved, bits),
    )


def _work(method: Method, options: Any, bits: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """What the calibration computes at each width, where the method can tell."""
    tell = getattr(method, "work", None)  # a plug-in need not be a subclass of the contract
    if tell is None:
        return {}
    found = {width: tell(options, BitSpec.parse(width)) for width in bits}
    return {w: dataclasses.asdict(work) for w, work in found.items() if work is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodSupport:
    """On what a method can be run here.

    Attributes:
        unquantized: A reference row, which has no widths.
        refused: By family, then by width: why not; a width that is absent can be made.
    """

    name: str
    unquantized: bool
    needs_calibration: bool
    refused: dict[str, dict[str, str]]


def support(name: str, families: Sequence[str], bits: Sequence[str], cache: Path) -> MethodSupport:
    """Ask a method about every family and width, at its default options; remembered as facts are.

    Raises:
        BrokenMethodError: It cannot be loaded.
    """
    question = _question(name) | {"families": list(families), "widths": list(bits)}
    path = cache / f"{digest(question)}.json"
    if question["source"] and path.is_file():
        return MethodSupport(**json.loads(path.read_text(encoding="utf-8")))
    method = load_method(name)
    found = MethodSupport(
        name=name,
        unquantized=method.unquantized,
        needs_calibration=method.needs_calibration,
        refused={
            family: {
                width: answer.reason
                for width in bits
                if (answer := method.supports(family, BitSpec.parse(width))) is not None
            }
            for family in families
        },
    )
    _remember(path, found)
    return found


def _question(name: str) -> dict[str, Any]:
    """What an answer of a method depends on: its source, and what this machine has."""
    point = find_method(name)
    return {
        "point": point.value,
        "source": _source(point.module),
        "installed": _installed(),
        "gpus": list(cuda_names()),
        "python": sys.version,
    }


def _source(module: str) -> str:
    """Digest of the sources that its answers come from; empty when they cannot be found."""
    own = module.partition(".")[0]
    try:
        return sources_digest(reach([module], (own, *_ANSWERING)))
    except HarnessError:
        return ""


@once
def _installed() -> str:
    """Digest of the names and versions of all distributions, from the names of their folders."""
    folders = {Path(place) for place in sys.path if place}
    names = {p.name for f in folders if f.is_dir() for p in f.glob("*.dist-info")}
    return digest(sorted(names))


def _remember(path: Path, answer: Any) -> None:
    # A store that cannot be written is said by the check before the work; planning can go on.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(plain(answer)))
