"""Which clips of a suite each dimension can judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.vbench.dimensions import DIMENSIONS, FLOW, STATIC
from harness.vbench.names import official_name
from harness.vbench.suites import FLICKERING, FULL_SUITE, dimensions, filters_static, is_vbench

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.spec import Prompt, PromptSuite

ACTION = "human_action"
ACTION_MARK = "person is "
ACTION_CLASSES = ("third_party", "umt", "kinetics_400_categories.txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wants:
    """What to judge.

    Attributes:
        per_prompt: Names of dimensions (and ``STATIC``, ``FLOW``) by prompt id, in wanted order.
        refused: Dimensions that no prompt of the suite can be judged by, with the reason.
        partly: Dimensions that only some prompts can be judged by, with the reason.
    """

    per_prompt: dict[str, tuple[str, ...]]
    refused: dict[str, str]
    partly: dict[str, str]


def dimensions_for(
    suite: PromptSuite, wanted: Sequence[str], *, actions: frozenset[str] | None = None
) -> Wants:
    """Decide which dimensions judge which prompts.

    VBench's own prompts are judged by what they are listed for, as ``vbench evaluate`` does in its
    standard mode. Prompts of one's own are judged by what the official code allows for custom
    prompts. Where the suite makes enough clips for the static filter, flickering wants it as well.

    Args:
        suite: Any suite.
        wanted: Names of ``DIMENSIONS``, ``STATIC`` and ``FLOW``.
        actions: The classes of human_action (``action_classes``); None to check the form alone.
    """
    known = {prompt.id: dimensions(prompt) for prompt in suite.prompts if is_vbench(suite)}
    chosen: dict[str, list[str]] = {prompt.id: [] for prompt in suite.prompts}
    refused: dict[str, str] = {}
    partly: dict[str, str] = {}
    for name in dict.fromkeys(wanted):
        if name in (STATIC, FLOW):
            reasons = dict.fromkeys(chosen, "")
        elif is_vbench(suite):
            reason = f"no prompt of '{suite.name}' is listed for it: take {FULL_SUITE}"
            reasons = {i: "" if name in listed else reason for i, listed in known.items()}
        else:
            reasons = {p.id: _refusal(name, p, actions) for p in suite.prompts}
        judged = [i for i, reason in reasons.items() if not reason]
        why = next((reason for reason in reasons.values() if reason), "")
        if not judged:
            refused[name] = why
        elif why and not is_vbench(suite):
            partly[name] = f"{len(judged)} of {len(reasons)} prompts: the others: {why}"
        for prompt_id in judged:
            chosen[prompt_id].append(name)
    if filters_static(suite):
        for names in chosen.values():
            if FLICKERING in names and STATIC not in names:
                names.append(STATIC)
    return Wants(
        per_prompt={i: tuple(names) for i, names in chosen.items()}, refused=refused, partly=partly
    )


def action_label(prompt: str) -> str | None:
    """The class that the official code reads from the name of a prompt's clip; None without one.

    It takes the lower-case file name up to the first hyphen, what follows the last "person is ",
    and of that what precedes the first underscore.
    """
    head = prompt.lower().split("-")[0]
    if ACTION_MARK not in head:
        return None
    return head.split(ACTION_MARK)[-1].split("_")[0] or None


def action_classes(full_info: Path) -> frozenset[str]:
    """The 400 classes that human_action knows, from the package that holds ``full_info``."""
    text = full_info.parent.joinpath(*ACTION_CLASSES).read_text(encoding="utf-8")
    return frozenset(line.split("\t")[0].lower() for line in text.splitlines() if line.strip())


def _refusal(name: str, prompt: Prompt, actions: frozenset[str] | None) -> str:
    """Why a prompt of one's own cannot be judged; empty where it can."""
    if not DIMENSIONS[name].custom:
        return "the official code judges it on VBench's own prompts only"
    if name != ACTION:
        return ""
    label = action_label(prompt.text)
    if label is None:
        return f"the official code takes the action from after '{ACTION_MARK}', which is missing"
    if not official_name(prompt.text, 0).exact:
        return "the official code takes the action from the file name, which this prompt cannot be"
    if actions is not None and label not in actions:
        return f"'{label}' is none of the {len(actions)} actions it knows, so it could only score 0"
    return ""
