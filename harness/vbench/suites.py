"""Prompt suites made from the prompt list of the installed vbench package.

No prompt text is part of this repository. Which entries a suite takes is a rule over the list's
dimensions, and the list must have the counts of the version the rules were written for.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, UsageError
from harness.spec import Prompt, PromptSuite
from harness.store.keys import canonical, file_digest, prompts_digest
from harness.vbench.dimensions import DIMENSIONS, EIGHT, VBENCH_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

EIGHT_SUITE, FULL_SUITE, SUBSET = "vbench-8", "vbench-full", "vbench-subset"
PATTERNS = (EIGHT_SUITE, FULL_SUITE, f"{SUBSET}-<n>")
SUITE_VERSION = 1
"""Raised with any change of the rules below."""

SAMPLES = 5
"""Clips a prompt that ``vbench evaluate`` looks for in its standard mode."""
FLICKERING_SAMPLES = 25
"""Clips a flickering prompt, of which the static filter keeps at most ``SAMPLES``."""
FLICKERING = "temporal_flickering"

GROUPS = {
    ("temporal_flickering",): 75,
    ("multiple_objects",): 82,
    ("human_action",): 100,
    ("subject_consistency", "dynamic_degree", "motion_smoothness"): 72,
    ("object_class",): 79,
    ("color",): 85,
    ("appearance_style",): 90,
    ("temporal_style",): 100,
    ("overall_consistency", "aesthetic_quality", "imaging_quality"): 93,
    ("scene", "background_consistency"): 86,
    ("spatial_relationship",): 84,
}
"""Prompts by the dimensions they are listed for, in the order of the list of vbench 0.1.5."""
SMALLEST, LARGEST = len(GROUPS), sum(GROUPS.values())

# Prefixed, for the tags of one's own prompts may be called anything.
_TAG_AUXILIARY, _TAG_DIMENSIONS, _TAG_SAMPLES = (
    f"vbench.{name}" for name in ("auxiliary", "dimensions", "samples")
)
_PROBLEM = "the prompt list '{path}' is not the one of vbench {version}: {what}"
_REMEDY = f"install vbench {VBENCH_VERSION}: harness fetch vbench"


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedPrompt:
    """One prompt of the official list.

    Attributes:
        index: Its place in the list, from 0; names it in our ids.
        dimensions: What it is listed for, in the list's order.
        auxiliary: What dimensions want to know beside the text, by dimension.
    """

    index: int
    text: str
    dimensions: tuple[str, ...]
    auxiliary: dict[str, Any]


def is_name(name: str) -> bool:
    """Whether a suite's name is one of ours, with or without a sensible number behind it."""
    return name in (EIGHT_SUITE, FULL_SUITE) or re.fullmatch(rf"{SUBSET}-\d+", name) is not None


def is_vbench(suite: PromptSuite) -> bool:
    """Whether a suite holds prompts of VBench's list; a file of that name does not."""
    return bool(suite.source)


def refuse_limit(name: str, limit: int | None) -> None:
    """Refuse to cut a suite: the first prompts of the list all belong to one dimension.

    Raises:
        UsageError: A limit was asked for.
    """
    if limit is not None and is_name(name):
        count = min(max(limit, SMALLEST), LARGEST)
        raise UsageError(
            f"suite '{name}' cannot be cut to its first {limit} prompts: they are sorted by "
            "dimension",
            f"take a stratified part instead: --suite {SUBSET}-{count}",
        )


def load(name: str, full_info: Path) -> PromptSuite:
    """Make a suite from the official list.

    ``vbench-8``: the 251 prompts of the eight dimensions of the quantization papers, one clip each
    (S2Q-VDiT, appendix C.1). ``vbench-full``: all prompts with the official number of clips.
    ``vbench-subset-<n>``: n prompts, one clip each, see ``stratified``.

    Args:
        name: One of ``PATTERNS``.
        full_info: ``VBench_full_info.json`` of the installed package.

    Raises:
        UsageError: A subset of a size that cannot be made.
        HarnessError: The list is not the one of ``VBENCH_VERSION``.
    """
    entries = read(full_info)
    if name == EIGHT_SUITE:
        chosen = [entry for entry in entries if set(entry.dimensions) & set(EIGHT)]
    elif name == FULL_SUITE:
        chosen = entries
    else:
        chosen = stratified(entries, _subset_size(name))
    prompts = tuple(_prompt(entry, official=name == FULL_SUITE) for entry in chosen)
    return PromptSuite(
        name=name,
        version=SUITE_VERSION,
        role="eval",
        prompts=prompts,
        digest=prompts_digest(prompts),
        source=f"vbench {VBENCH_VERSION}, {full_info.name} sha256 {file_digest(full_info)}",
    )


def read(full_info: Path) -> list[ListedPrompt]:
    """Read the official list.

    Raises:
        HarnessError: It cannot be read, or has other prompts than ``VBENCH_VERSION`` has.
    """
    try:
        rows = json.loads(full_info.read_text(encoding="utf-8"))
        entries = [_entry(index, row) for index, row in enumerate(rows)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        reason = f"{cause.__class__.__name__}: {cause}"
        raise HarnessError(
            f"the prompt list '{full_info}' cannot be read ({reason})", _REMEDY
        ) from cause
    counts: dict[tuple[str, ...], int] = {}
    for entry in entries:
        counts[entry.dimensions] = counts.get(entry.dimensions, 0) + 1
    if counts != GROUPS:
        groups = dict.fromkeys([*GROUPS, *counts])
        group = next(g for g in groups if counts.get(g, 0) != GROUPS.get(g, 0))
        what = f"{counts.get(group, 0)} prompts for {' + '.join(group)}, not {GROUPS.get(group, 0)}"
        message = _PROBLEM.format(path=full_info, version=VBENCH_VERSION, what=what)
        raise HarnessError(message, _REMEDY)
    return entries


def stratified(entries: Sequence[ListedPrompt], count: int) -> list[ListedPrompt]:
    """Take ``count`` entries with every group of dimensions in its share, in the list's order.

    A group gets the whole part of ``count * size / total``; what is left goes one each to the
    largest remainders, on a tie to the group that comes first in the list. Within a group of
    ``size`` entries the k-th of n is number ``floor((2k + 1) size / 2n)``: evenly spaced, for
    neighbours in the list resemble each other.
    """
    members: dict[tuple[str, ...], list[ListedPrompt]] = {}
    for entry in entries:
        members.setdefault(entry.dimensions, []).append(entry)
    whole = {group: count * len(found) // len(entries) for group, found in members.items()}
    rest = {group: count * len(found) % len(entries) for group, found in members.items()}
    # sorted() is stable, so groups with the same remainder stay in the list's order.
    for group in sorted(rest, key=lambda g: -rest[g])[: count - sum(whole.values())]:
        whole[group] += 1
    chosen = [
        found[(2 * k + 1) * len(found) // (2 * whole[group])]
        for group, found in members.items()
        for k in range(whole[group])
    ]
    return sorted(chosen, key=lambda entry: entry.index)


def samples(prompt: Prompt) -> int:
    """How many clips the protocol makes of a prompt; 1 for prompts that are not VBench's."""
    return int(dict(prompt.tags).get(_TAG_SAMPLES, "1"))


def dimensions(prompt: Prompt) -> tuple[str, ...]:
    """What a prompt of a VBench suite is listed for."""
    return tuple(dict(prompt.tags).get(_TAG_DIMENSIONS, "").split())


def auxiliary(prompt: Prompt, dimension: str) -> dict[str, Any] | None:
    """What a dimension wants to know of a prompt beside its text; None where it wants nothing."""
    found = json.loads(dict(prompt.tags).get(_TAG_AUXILIARY, "{}"))
    value: dict[str, Any] | None = found.get(dimension)
    return value


def filters_static(suite: PromptSuite) -> bool:
    """Whether flickering is averaged over static clips: only where enough clips are made of it."""
    return is_vbench(suite) and any(samples(p) == FLICKERING_SAMPLES for p in suite.prompts)


def listed(full_info: Path | None) -> list[tuple[str, str]]:
    """Names and descriptions for ``harness list suites``; none without the package.

    Raises:
        HarnessError: The list is not the one of ``VBENCH_VERSION``.
    """
    if full_info is None:
        return []
    rows = []
    for name in (EIGHT_SUITE, FULL_SUITE):
        suite = load(name, full_info)
        clips = sum(samples(p) for p in suite.prompts)
        about = f"{len(suite.prompts)} prompts, {clips} clips"
        rows.append((name, f"eval, version {suite.version}, sha256 {suite.digest[:12]}; {about}"))
    about = f"eval, a stratified part of {SMALLEST} to {LARGEST} prompts, one clip each"
    return [*rows, (PATTERNS[-1], about)]


def _subset_size(name: str) -> int:
    count = int(name.rpartition("-")[2])
    if not SMALLEST <= count <= LARGEST:
        raise UsageError(
            f"suite '{name}' cannot be made of {count} prompts",
            f"take {SMALLEST} (one for each group of dimensions) to {LARGEST} (all)",
        )
    return count


def _entry(index: int, row: dict[str, Any]) -> ListedPrompt:
    entry = ListedPrompt(
        index=index,
        text=row["prompt_en"],
        dimensions=tuple(row["dimension"]),
        auxiliary=dict(row.get("auxiliary_info", {})),
    )
    if not isinstance(entry.text, str) or not entry.text:
        raise ValueError(f"entry {index} has no text")
    for name in entry.dimensions:
        if "auxiliary" in DIMENSIONS[name].asks and not isinstance(entry.auxiliary[name], dict):
            raise ValueError(f"entry {index} has no auxiliary entry for {name}")
    return entry


def _prompt(entry: ListedPrompt, *, official: bool) -> Prompt:
    count = FLICKERING_SAMPLES if FLICKERING in entry.dimensions else SAMPLES
    tags = {
        _TAG_DIMENSIONS: " ".join(entry.dimensions),
        _TAG_SAMPLES: str(count if official else 1),
    }
    if entry.auxiliary:
        tags[_TAG_AUXILIARY] = canonical(entry.auxiliary)
    return Prompt(id=f"vb-{entry.index:04d}", text=entry.text, tags=tuple(sorted(tags.items())))
