"""One report of a denoiser of several networks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

from harness.models.families.parts import prefix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.method import QuantReport


def merged(reports: Mapping[str, QuantReport]) -> QuantReport:
    """One report of a denoiser from those of its networks, by their names.

    Counts and seconds add up, prompts and peaks do not; names of layers and curves are prefixed.
    """
    (first, *others) = reports.values()
    if not others:
        return first
    every = reports.items()
    seconds: Counter[str] = Counter()
    for report in reports.values():
        seconds.update(report.parts)
    return dataclasses.replace(
        first,
        layers=tuple(
            dataclasses.replace(layer, name=prefix(part) + layer.name)
            for part, report in every
            for layer in report.layers
        ),
        calibration_forwards=sum(r.calibration_forwards for r in reports.values()),
        calibration_samples=sum(r.calibration_samples for r in reports.values()),
        seconds=sum(r.seconds for r in reports.values()),
        peak_bytes=max(r.peak_bytes for r in reports.values()),
        notes=tuple(dict.fromkeys(note for r in reports.values() for note in r.notes)),
        curves={prefix(part) + name: c for part, r in every for name, c in r.curves.items()},
        mixed="; ".join(dict.fromkeys(r.mixed for r in reports.values() if r.mixed)),
        parts=dict(seconds),
    )
