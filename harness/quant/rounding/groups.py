"""What a report says about groups of input channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.quant.layers.linear import fitting_group

if TYPE_CHECKING:
    from collections.abc import Iterable


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
