"""What stands under every table: without it a number cannot be compared with anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.report.values import Values

if TYPE_CHECKING:
    from harness.spec import Record
    from harness.store.records import Run

_DIGEST = 12  # hexadecimal digits printed; run.json has them all


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where the numbers of a table come from.

    Attributes:
        run: Run id.
        version: Version of this package.
        at: UTC time of the run.
        suites: One text for each prompt suite: name, version, digest, role.
        prompts: Evaluation prompts in the records.
        seeds: Seeds of the initial noise for each prompt; the most where prompts differ.
        cohort: Device, library versions and settings that paired values share.
        locked: One text for each model whose commit was asked from the hub, not released with us.
        fewest: Seeds of the prompt that has the fewest; 0 where that was not counted.
        scorers: One text for each judge that is not this package, with what it judged.

    Raises:
        HarnessError: A part is missing.
    """

    run: str
    version: str
    at: str
    suites: tuple[str, ...]
    prompts: int
    seeds: int
    cohort: str
    locked: tuple[str, ...] = ()
    scorers: tuple[str, ...] = ()
    fewest: int = 0

    def __post_init__(self) -> None:
        parts = ("run", "version", "suites", "prompts", "seeds", "cohort")
        missing = [name for name in parts if not getattr(self, name)]
        if missing:
            raise HarnessError(
                f"a table needs its provenance; missing: {', '.join(missing)}",
                "print tables from a complete run folder (run.json and records.jsonl)",
            )

    @classmethod
    def of(cls, run: Run) -> Provenance:
        """Read the provenance of a run."""
        prompts, seeds = Values.of(run).clips()
        planned = [s.get("prompts", 0) for s in run.suites.values() if s.get("role") == "eval"]
        return cls(
            run=run.id,
            version=str(run.provenance.get("harness", "")),
            at=str(run.provenance.get("at", "")),
            suites=tuple(_suite(name, facts) for name, facts in sorted(run.suites.items())),
            prompts=len(prompts) or sum(planned),
            seeds=len(seeds) or len(run.experiment.get("seeds", ())) or 1,
            cohort=_cohort(run.cohort),
            locked=_locked(run.experiment.get("models", ())),
            scorers=_scorers(run.records),
            fewest=_fewest(run.records),
        )

    def lines(self) -> list[str]:
        """The footer, a few lines of plain text."""
        when = f", {self.at}" if self.at else ""
        seeds = _count(self.seeds, "seed")
        if 0 < self.fewest < self.seeds:
            seeds = f"{self.fewest} to {seeds}"
        return [
            f"run {self.run}, vdit-quant-harness {self.version}{when}",
            f"n = {_count(self.prompts, 'prompt')} x {seeds}; " + "; ".join(self.suites),
            f"cohort: {self.cohort}",
            *self.scorers,
            *self.locked,
        ]


def _fewest(records: Iterable[Record]) -> int:
    """Seeds of the prompt that has the fewest."""
    seeds: dict[str, set[int]] = {}
    for record in records:
        if record.prompt:
            seeds.setdefault(record.prompt, set()).add(record.seed)
    return min((len(found) for found in seeds.values()), default=0)


def _scorers(records: Iterable[Record]) -> tuple[str, ...]:
    """``judged by vbench 0.1.5, <device>, float32: imaging_quality (93 prompts, weights 0123...)``.

    The second part of a record's scorer says which weights: it differs between metrics, the others
    do not. A dimension is judged on its own prompts, so their number differs too.
    """
    judged: dict[str, dict[tuple[str, str], set[str]]] = {}
    for record in records:
        if record.scorer and record.prompt:
            package, weights, *rest = record.scorer.split(", ")
            scorer = ", ".join([package, *rest])
            metrics = judged.setdefault(scorer, {})
            metrics.setdefault((record.metric, weights), set()).add(record.prompt)
    return tuple(
        f"judged by {scorer}: "
        + ", ".join(f"{m} ({_count(len(p), 'prompt')}, {w})" for (m, w), p in metrics.items())
        for scorer, metrics in judged.items()
    )


def _locked(models: Iterable[Any]) -> tuple[str, ...]:
    """``model wan2.1-1.3b: Wan-AI/... at 0123456789ab, locked at first use, 2026-...``."""
    known = [m for m in models if isinstance(m, Mapping) and m.get("locked")]
    return tuple(
        f"model {m['name']}: {m['repo']} at {m['revision'][:_DIGEST]}, {m['locked']}" for m in known
    )


def _suite(name: str, facts: Mapping[str, Any]) -> str:
    """``suite shapes-eval v1 (eval, sha256 0123456789ab)``; a suite without a digest is none."""
    digest = str(facts.get("digest", ""))
    if not digest or "version" not in facts:
        raise HarnessError(
            f"suite '{name}' of the run has no version or digest",
            "print tables from a complete run folder; this one was written by something else",
        )
    short = digest.removeprefix("sha256:")[:_DIGEST]
    return f"suite {name} v{facts['version']} ({facts.get('role', 'eval')}, sha256 {short})"


def _cohort(cohort: Mapping[str, Any]) -> str:
    """The declared parts on one line; a run of several models has one cohort for each of them."""
    if not cohort or not all(isinstance(v, Mapping) for v in cohort.values()):
        parts = sorted(cohort.items(), key=lambda part: (part[0] != "device", part[0]))
        return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in parts if v not in ("", None))
    texts = {model: _cohort(facts) for model, facts in cohort.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{model}: {text}" for model, text in texts.items())


def _count(n: int, noun: str) -> str:
    """``1 seed``, ``16 prompts``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
