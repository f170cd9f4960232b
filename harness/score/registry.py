"""Finding scorers: installed ones by entry point, one's own by ``module:attribute``."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from harness import plug_in
from harness.errors import HarnessError, UsageError, unknown_name
from harness.score.scorer import Scorer, Unscored
from harness.spec import Status
from harness.vbench.dimensions import DIMENSIONS, FLOW, STATIC

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.spec import Metric, ModelSpec, Prompt

GROUP = "harness.metrics"
_OWN = "harness."  # modules of this package


class BrokenScorerError(HarnessError):
    """A scorer cannot be loaded, or what was loaded is none."""


@cache
def _points() -> dict[str, EntryPoint]:
    """Installed scorers by name: this package's in the order of the table, then plug-ins."""
    points = sorted(entry_points(group=GROUP), key=lambda p: (not p.value.startswith(_OWN), p.name))
    return {point.name: point for point in points}


def scorer_names() -> tuple[str, ...]:
    """Names of every installed scorer; imports none of them."""
    return tuple(_points())


@cache
def load_scorer(name: str) -> Scorer:
    """Import a scorer and make the object, once in a process.

    Args:
        name: An installed name, or ``module:attribute``.

    Raises:
        UsageError: There is no such name.
        BrokenScorerError: Importing it fails, or what was imported is no scorer.
    """
    point = _points().get(name)
    if point is None:
        if ":" not in name:
            raise unknown_name("metric", name, _points())
        plug_in.check_spelling("metric", name)
        point = EntryPoint(name=name, value=name, group=GROUP)
    scorer = plug_in.load("metric", name, point, BrokenScorerError)
    if not isinstance(scorer, Scorer) or not getattr(scorer, "name", ""):
        raise BrokenScorerError(
            f"metric '{name}' ({point.value}) is no Scorer with a name",
            "docs/adding-a-metric.md shows a complete one",
        )
    if not scorer.metrics:
        raise BrokenScorerError(
            f"metric '{name}' ({point.value}) declares no metrics",
            "docs/adding-a-metric.md shows a complete one",
        )
    scorer.asked_as = name
    return scorer


def always_scorers() -> list[Scorer]:
    """The installed scorers that are computed unasked; a plug-in that is broken is not among them.

    ``harness list metrics`` says which are broken.
    """
    found = []
    for name, point in _points().items():
        try:
            scorer = load_scorer(name)
        except BrokenScorerError:
            if point.value.startswith(_OWN):
                raise
            continue
        if scorer.always:
            found.append(scorer)
    return found


def choose_scorers(
    asked: Sequence[str], model: ModelSpec, prompts: Sequence[Prompt], *, clips: int
) -> tuple[Scorer, ...]:
    """Who scores the rows of a model, beside VBench.

    Args:
        asked: Metrics that were asked for by name; VBench's are passed over.
        model: The model.
        prompts: The evaluation prompts.
        clips: Clips of a row.

    Returns:
        The scorers; those that were asked for and cannot score, and those that would always be
        there but for something that is missing on this machine, as ``Unscored``.

    Raises:
        BrokenScorerError: One that was asked for cannot be loaded.
        UsageError: Two scorers have a metric of the same name.
    """
    found: list[Scorer] = []
    for scorer in always_scorers():
        refusal, lack = _answers(scorer, model, prompts, clips)
        if not refusal:
            found.append(Unscored(scorer, Status.SKIPPED, lack) if lack else scorer)
    for name in asked:
        if name in DIMENSIONS or name in (STATIC, FLOW):
            continue
        scorer = load_scorer(name)
        if scorer.always:
            continue
        refusal, lack = _answers(scorer, model, prompts, clips)
        why = refusal or lack
        found.append(Unscored(scorer, Status.SKIPPED, why) if why else scorer)
    _refuse_doubles(found)
    return tuple(found)


def _answers(
    scorer: Scorer, model: ModelSpec, prompts: Sequence[Prompt], clips: int
) -> tuple[str, str]:
    """Why a scorer does not apply, and what it lacks here; what a plug-in's answer raises, too."""
    try:
        refusal = scorer.refusal(model, prompts, clips)
        return refusal, "" if refusal else scorer.missing()
    except Exception as cause:  # one metric that fails costs its own values only
        return "", f"{plug_in.told(cause)} ({plug_in.place_of(cause)})"


def _refuse_doubles(scorers: Iterable[Scorer]) -> None:
    """Refuse two scorers that give a metric of one name: their values could not be told apart.

    Raises:
        UsageError: There are two.
    """
    owners: dict[str, str] = {}
    for scorer in scorers:
        for metric in scorer.metrics:
            owner = owners.setdefault(metric.name, scorer.name)
            if owner != scorer.name:
                raise UsageError(
                    f"metric '{metric.name}' is given by '{owner}' and by '{scorer.name}'",
                    "leave one of them out, or rename the metric",
                )


def builtin_metrics() -> tuple[Metric, ...]:
    """Facts of the metrics that this package's own scorers give, VBench's included.

    A run says in its own folder which metrics it has; these are for those that 0.1.0 wrote.
    """
    from harness.score.vbench_scorer import DIMENSION_ORDER, TOTAL_METRICS, metrics_of

    own = [load_scorer(name) for name, p in _points().items() if p.value.startswith(_OWN)]
    own.sort(key=lambda scorer: not scorer.always)
    return (
        *(metric for scorer in own for metric in scorer.metrics),
        *(metric for name in DIMENSION_ORDER for metric in metrics_of(name)),
        *TOTAL_METRICS,
        *(metric for name in (FLOW, STATIC) for metric in metrics_of(name)),
    )
