"""Group sizes that a width allows, and the note where it is not the one that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def fitting_group(width: int, group: int) -> int:
    """Largest divisor of a width that is no larger than ``group``.

    Miniatures are narrower than the groups of the papers; the widths of real models give 64 and 128
    back. 0, one grid for the whole row, stays 0.
    """
    if group == 0:
        return 0
    return next(size for size in range(min(group, width), 0, -1) if width % size == 0)


def group_note(group: int, widths: Iterable[int]) -> tuple[str, ...]:
    """Note for the report where a group size does not divide every input width.

    Args:
        group: Group size asked for, 0 for none.
        widths: Input widths of the quantized linears.
    """
    if group == 0:
        return ()
    fitted = {width: fitting_group(width, group) for width in sorted(set(widths))}
    other = [f"{size} at width {width}" for width, size in fitted.items() if size != group]
    if not other:
        return ()
    return (f"groups of {group} do not fit every input width; groups of {', '.join(other)}",)
