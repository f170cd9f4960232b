"""How an inspected artifact is printed: a table of layers and a few lines, JSON, or CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

from harness.store.keys import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.artifact.inspect import Form, InspectedLayer, Inspection

_HEADS = ("layer", "shape", "bits", "levels", "group", "sym", "activation", "error", "transform")
_RIGHT = ("shape", "levels", "group", "error")


def text(found: Inspection) -> str:
    """The layers and what they come to."""
    rows = [list(_HEADS), *(_row(layer) for layer in found.layers)]
    sizes = [max(len(row[i]) for row in rows) for i in range(len(_HEADS))]
    aligned = [
        "  ".join(
            f"{cell:>{n}}" if head in _RIGHT else f"{cell:<{n}}"
            for cell, n, head in zip(row, sizes, _HEADS, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*aligned, "", *summary(found)])


def summary(found: Inspection) -> list[str]:
    """The averages beside the nominal label, the steps by form, the bytes."""
    quantized = sum(layer.parameters for layer in found.layers)
    share = quantized / max(1, found.total_parameters)
    lines = [
        f"nominal: {found.nominal or 'not recorded'}"
        + (f" ({found.method})" if found.method else ""),
        f"layers: {len(found.layers)} quantized, {quantized} of {found.total_parameters} "
        f"parameters ({share:.1%}); {found.kept} tensors kept in high precision",
        f"weight bits: {found.w_bits_quantized:.2f} over the quantized weights, "
        f"{found.w_bits_all:.2f} over all parameters (the rest counted as 16), "
        f"{found.stored_bits:.2f} on disk for each parameter, everything counted",
        f"activation bits: {found.a_bits_weights:.2f} weighted by weights"
        + ("" if found.a_bits_work is None else f", {found.a_bits_work:.2f} by multiplications")
        + (
            ""
            if found.a_bits_clips is None
            else f", {found.a_bits_clips:.2f} by multiplications over the sampling steps of "
            f"{found.clips} clips"
        ),
    ]
    if found.policy is not None:
        lines.append(f"step policy: {found.policy['kind']} {json.dumps(found.policy['facts'])}")
        lines += _steps(found)
    if found.mixed:
        lines.append(f"mixed widths: {found.mixed}")
    if found.parts:
        lines.append(calibration_time(found.parts))
    return [*lines, f"on disk: {found.bytes} bytes ({found.bytes / 1e6:.2f} MB)"]


def calibration_time(parts: Mapping[str, float]) -> str:
    """The seconds of a calibration and what they went to, the longest first."""
    total = sum(parts.values())
    order = sorted(parts.items(), key=lambda part: -part[1])
    named = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in order if seconds >= 0.05)
    return f"calibration: {total:.1f} s{f' ({named})' if named else ''}"


def as_json(found: Inspection, problem: str | None) -> str:
    """Everything, as one document.

    Args:
        found: The inspected artifact.
        problem: What the check found wrong, empty for nothing, None where it was not checked.
    """
    return json.dumps({**plain(found), "problem": problem}, indent=1) + "\n"


def as_csv(found: Inspection) -> str:
    """A line for each form of each layer."""
    out = io.StringIO()
    names = ("layer", "kind", "parameters", "error", "form")
    fields = ("w_bits", "a_bits", "levels", "group", "symmetric", "transform", "activation")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, *fields])
    for layer in found.layers:
        for i, form in enumerate(layer.forms):
            facts = [layer.name, layer.kind, layer.parameters, layer.error, i]
            writer.writerow([*facts, *(getattr(form, field) for field in fields)])
    return out.getvalue()


def _steps(found: Inspection) -> list[str]:
    total = sum(found.histogram)
    if not total:
        return ["steps by form: not known, no clip of this artifact is in the store"]
    forms = max(found.layers, key=lambda layer: len(layer.forms)).forms
    return [
        f"steps by form, {found.clips} clips:",
        *(
            f"  form {i} (w{form.w_bits:g}a{form.a_bits:g}): {count} steps, {count / total:.1%}  "
            f"{'#' * round(40 * count / total)}".rstrip()
            for i, (form, count) in enumerate(zip(forms, found.histogram, strict=True))
        ),
    ]


def _row(layer: InspectedLayer) -> list[str]:
    return [
        layer.name,
        f"{layer.shape[0]}x{layer.shape[1]}",
        _forms(layer, lambda form: f"w{form.w_bits:g}a{form.a_bits:g}"),
        _forms(layer, _levels),
        _forms(layer, lambda form: str(form.group)),
        _forms(layer, lambda form: "yes" if form.symmetric else "no"),
        _forms(layer, lambda form: form.activation),
        "-" if layer.error is None else f"{layer.error:.2e}",
        _forms(layer, lambda form: form.transform),
    ]


def _levels(form: Form) -> str:
    if form.levels is None:
        return "-"
    return f"{form.levels}/{2 ** int(form.w_bits)}"


def _forms(layer: InspectedLayer, write: Callable[[Form], str]) -> str:
    """What the forms have, once where they agree."""
    return " | ".join(dict.fromkeys(write(form) for form in layer.forms))
