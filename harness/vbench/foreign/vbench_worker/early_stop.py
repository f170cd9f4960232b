"""RAFT on no more pairs of frames than the official verdict needs.

The official classes run RAFT on all pairs and then look at the scores. Here the official loop runs
unmodified too, with the instance's ``get_score`` wrapped: as soon as no further score could change
the verdict, the wrapper leaves the loop with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vbench_worker.substitute import replaced

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    Rule = Callable[[Any, Sequence[float], int], "bool | None"]


class _DecidedError(Exception):
    """Nothing that is still to come can change the verdict."""


def moves(dynamic: Any, scores: Sequence[float], total: int) -> bool | None:
    """What dynamic_degree will say of a clip.

    Official rule: ``count_num`` of the pairs above the threshold make it true, and a ``count_num``
    of 0 makes it true at the first pair, whatever its score. Without any pair it is false.

    Args:
        dynamic: The official object, after ``set_params``.
        scores: Of the pairs so far.
        total: Pairs of the clip.

    Returns:
        None while the verdict is open.
    """
    if dynamic.check_move(scores):
        return True
    above = sum(score > dynamic.params["thres"] for score in scores)
    if above + total - len(scores) < dynamic.params["count_num"]:
        return False
    return None


def is_static(static: Any, scores: Sequence[float], total: int) -> bool | None:
    """What the static filter will say of a clip.

    Official rule: more than ``count_num`` of the neighbouring pairs above the threshold, or one of
    the two pairs of first and last frame (which come last) above ``2 * count_num`` thresholds,
    make it false.

    Args:
        static: The official object, after ``set_params``.
        scores: Of the pairs so far.
        total: Pairs of the clip, the two last ones included.

    Returns:
        None while the verdict is open.
    """
    threshold, count_num = static.params["thres"], static.params["count_num"]
    neighbours, ends = scores[: total - 2], scores[total - 2 :]
    if sum(score > threshold for score in neighbours) > count_num:
        return False
    if any(score > threshold * count_num * 2 for score in ends):
        return False
    return None


def infer(official: Any, path: str, rule: Rule, *, extra_pairs: int, pairs: Counter[str]) -> bool:
    """The verdict of an official ``infer``, with RAFT run on as few pairs as decide it.

    Args:
        official: A ``DynamicDegree`` or a ``StaticFilter``.
        path: The clip, as the official code opens it.
        rule: ``moves`` or ``is_static``.
        extra_pairs: How many pairs the official loop has beyond the neighbouring frames.
        pairs: Counts pairs ``run`` and ``of`` how many.
    """
    scores: list[float] = []
    totals: list[int] = []
    set_params, get_score = official.set_params, official.get_score

    def watched_params(frame: Any, count: int) -> None:
        totals.append(count - 1 + extra_pairs)
        set_params(frame=frame, count=count)

    def watched_score(image: Any, flow: Any) -> float:
        scores.append(get_score(image, flow))
        if (verdict := rule(official, scores, totals[0])) is not None:
            raise _DecidedError(verdict)
        return scores[-1]

    with replaced(official, set_params=watched_params, get_score=watched_score):
        try:
            verdict = official.infer(path)
        except _DecidedError as decided:
            verdict = decided.args[0]
    pairs["run"] += len(scores)
    pairs["of"] += totals[0]
    return bool(verdict)
