"""What the official loops over prompts take: a prompt, its clips, and what the list says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vbench_worker.clips import Clip
    from vbench_worker.protocol import Want


class AuxiliaryError(Exception):
    """The job does not say what the official prompt list says about this prompt."""


def auxiliary(want: Want, *fields: str) -> dict[str, Any]:
    """What the official prompt list says about a prompt, in the shape the official loops take it.

    The official code raises a string where it is missing, which is a ``TypeError`` that says
    nothing.

    Args:
        want: The value that is asked for.
        fields: What the entry must hold.

    Raises:
        AuxiliaryError: If it is missing or lacks a field.
    """
    entry = want.auxiliary
    if not isinstance(entry, dict):
        raise AuxiliaryError(f"{want.dimension} needs the auxiliary entry of the official prompt")
    if missing := [f for f in fields if f not in entry]:
        raise AuxiliaryError(f"the auxiliary entry of {want.dimension} lacks {', '.join(missing)}")
    return entry


def one_prompt(clip: Clip, entry: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The list that the official loops over prompts take, of one prompt with one clip."""
    info: dict[str, Any] = {"prompt": clip.prompt, "video_list": [str(clip.link)]}
    return [info] if entry is None else [{**info, "auxiliary_info": entry}]
