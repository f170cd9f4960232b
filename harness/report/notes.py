"""What must be said about single rows: what their methods say, which steps ran in which form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.generate.generate import STEPS_FORM
from harness.kernels.request import OFF_REASON as OFF
from harness.spec import DEQUANTIZE, KERNEL, SIMULATED

if TYPE_CHECKING:
    from harness.report.values import Values
    from harness.store.records import CellOutcome


def row_notes(cell: CellOutcome, values: Values) -> list[str]:
    """Notes of a row: why it is not uniform, its steps by form, what its method says."""
    report = cell.report or {}
    mixed = [f"mixed widths: {report['mixed']}"] if report.get("mixed") else []
    told = [*mixed, *steps_note(cell, values), *report.get("notes", ())]
    return [*told, *execution_note(cell)]


def execution_note(cell: CellOutcome) -> list[str]:
    """What computes the linears of a row, or why no kernel does.

    Returns:
        One note; none where nothing is known, and where kernels are off.
    """
    linears = dict(cell.linears)
    if cell.execution == SIMULATED:
        count = linears.get(SIMULATED, 0)
        why = [f"{n} of {count}: {reason}" for reason, n in cell.reasons.items() if reason != OFF]
        return [f"linears without a kernel, {'; '.join(why)}"] if why else []
    expanded = linears.pop(DEQUANTIZE, 0)
    told = [f"{n} linears on {how.removeprefix(KERNEL)}" for how, n in linears.items()]
    if expanded:
        told.append(f"{expanded} with 16-bit activations expand their weights")
    return ["; ".join(told)] if told else []


def steps_note(cell: CellOutcome, values: Values) -> list[str]:
    """How many sampling steps of the evaluation clips ran in which form; nothing without a policy.

    Returns:
        One note or none.
    """
    widths = ((cell.report or {}).get("footprint") or {}).get("avg_a_bits_by_choice") or []
    counts: list[list[float]] = []
    for form in range(len(widths)):
        found = values.records(cell.id, f"{STEPS_FORM}{form}")
        counts.append([r.value for r in found if r.value is not None])
    if not counts or not counts[0]:
        return []
    clips, steps = len(counts[0]), sum(form[0] for form in counts)
    parts = [
        f"{sum(form) / clips:.1f} with activations at {width:.2f} bits ({_range(form)} a clip)"
        for form, width in zip(counts, widths, strict=True)
    ]
    of = f"of {steps:.0f} steps of a clip" if clips > 1 else f"of the {steps:.0f} steps of one clip"
    mean = f", mean of {clips} clips" if clips > 1 else ""
    return [f"{of}{mean}: {'; '.join(parts)}"]


def grouped_notes(cells: list[CellOutcome], values: Values) -> dict[str, list[CellOutcome]]:
    """Rows by what is said about them, in order of first appearance."""
    rows: dict[str, list[CellOutcome]] = {}
    for cell in cells:
        for note in row_notes(cell, values):
            rows.setdefault(note, []).append(cell)
    return rows


def _range(counts: list[float]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
