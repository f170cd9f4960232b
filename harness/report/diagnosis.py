"""How a diagnosis is printed, and its files."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import statistics
from typing import TYPE_CHECKING, Any

from harness.store.durable import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from harness.artifact.diagnose import Diagnosis
    from harness.report.spread import SeedSpread

WORST = 12


def text(
    names: Sequence[str],
    found: Sequence[Diagnosis],
    spreads: Mapping[str, Sequence[SeedSpread]],
) -> str:
    """All tables, one below the other."""
    return "\n".join(
        [
            "relative squared errors against full precision, added up over the prompts",
            *_steps(names, found),
            *_branches(names, found),
            *_blocks(names, found),
            *_layers(names, found),
            *_counts(names, found),
            *_seeds(spreads),
        ]
    )


def write(
    folder: Path,
    names: Sequence[str],
    found: Sequence[Diagnosis],
    spreads: Mapping[str, Sequence[SeedSpread]],
) -> None:
    """Write every table as CSV and a heat map for each artifact."""
    from harness.report.heat_map import draw_heat_map

    for table in ("layers", "blocks", "steps", "counts"):
        rows = [
            (n, row) for n, one in zip(names, found, strict=True) for row in getattr(one, table)
        ]
        _write_csv(folder / f"{table}.csv", rows)
    _write_csv(folder / "seeds.csv", [(n, row) for n, rows in spreads.items() for row in rows])
    for name, one in zip(names, found, strict=True):
        safe = re.sub(r"[^\w.#-]+", "-", name)
        draw_heat_map(folder / f"layers-{safe}.png", one.layers, f"{name}: error of each layer")


def _write_csv(path: Path, rows: Sequence[tuple[str, Any]]) -> None:
    """One line a row, the artifact first; an old file of a table without rows is removed."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["artifact", *(f.name for f in dataclasses.fields(rows[0][1]))])
    for name, row in rows:
        writer.writerow([name, *(_plain(v) for v in dataclasses.astuple(row))])
    replace_file(path, out.getvalue())


def _plain(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _steps(names: Sequence[str], found: Sequence[Diagnosis]) -> list[str]:
    """Teacher-forced against free-running, and the latents of the free run."""
    policy = any(step.form for one in found for step in one.steps)
    heads = ["step", "timestep"]
    for name in names:
        heads += [f"{_lead(name, names)}forced", "free", "latent", *(["form"] if policy else [])]
    rows = []
    for steps in zip(*(one.steps for one in found), strict=True):
        row = [str(steps[0].step), f"{steps[0].timestep:g}"]
        for s in steps:
            forced = s.forced if s.conditional is None else s.conditional
            row += [_error(forced), _error(s.free), _error(s.latent)]
            row += [s.form or "-"] if policy else []
        rows.append(row)
    said = [
        f"{name}: free over forced in the last third of the steps: "
        + ("not defined, no error" if one.growth is None else f"{one.growth:.2f}")
        for name, one in zip(names, found, strict=True)
    ]
    return [
        *_title(
            "by step: conditional output at full precision's latents (forced) and at its own "
            "(free); latent after the step"
        ),
        *_aligned([heads, *rows]),
        *said,
        "(near 1: the error of a step does not depend on those before; far above: it accumulates)",
    ]


def _branches(names: Sequence[str], found: Sequence[Diagnosis]) -> list[str]:
    if any(step.guided is None for one in found for step in one.steps):
        return []
    heads = ["step", "timestep"]
    for name in names:
        heads += [f"{_lead(name, names)}uncond", "cond", "direction", "guided"]
    rows = [
        [
            str(steps[0].step),
            f"{steps[0].timestep:g}",
            *(
                _error(value)
                for s in steps
                for value in (s.unconditional, s.conditional, s.direction, s.guided)
            ),
        ]
        for steps in zip(*(one.steps for one in found), strict=True)
    ]
    title = "by guidance branch, teacher-forced; direction: conditional minus unconditional"
    return [*_title(title), *_aligned([heads, *rows])]


def _blocks(names: Sequence[str], found: Sequence[Diagnosis]) -> list[str]:
    heads = ["block"]
    for name in names:
        heads += [f"{_lead(name, names)}own", "prefix"]
    blocks = dict.fromkeys(row.block for one in found for row in one.blocks)
    rows = []
    for block in blocks:
        row = [block]
        for one in found:
            mine = [b for b in one.blocks if b.block == block]
            row += [_mean(b.own for b in mine), _mean(b.prefix for b in mine)]
        rows.append(row)
    title = (
        "by block, mean over the steps: on full-precision inputs (own) and behind the quantized "
        "blocks before it (prefix)"
    )
    return [*_title(title), *_aligned([heads, *rows])]


def _layers(names: Sequence[str], found: Sequence[Diagnosis]) -> list[str]:
    """The worst layers by their mean over the steps, of any of the artifacts."""
    means: list[dict[str, float]] = []
    worst: list[dict[str, tuple[float, float]]] = []
    folded = {row.layer for one in found for row in one.layers if row.folded}
    for one in found:
        errors: dict[str, list[tuple[float, float]]] = {}
        for row in one.layers:
            errors.setdefault(row.layer, []).append((row.error, row.timestep))
        means.append({k: statistics.fmean(e for e, _ in v) for k, v in errors.items()})
        worst.append({k: max(v) for k, v in errors.items()})
    every = dict.fromkeys(layer for one in means for layer in one)
    order = sorted(every, key=lambda layer: -max(one.get(layer, 0.0) for one in means))[:WORST]
    heads = ["layer"]
    for name in names:
        heads += [f"{_lead(name, names)}mean", "worst", "at timestep"]
    rows = [_layer_row(layer, layer in folded, means, worst) for layer in order]
    title = f"by layer, the {len(order)} worst of {len(every)}, inputs of their block exact"
    lines = [*_title(title), *_aligned([heads, *rows])]
    if folded & set(order):
        lines.append("* a scale was folded into it: compared after a map for each channel")
    lines += [
        f"{name}: {len(one.uncompared)} modulation linears not compared, a scale was folded into "
        "them; what they do shows by block"
        for name, one in zip(names, found, strict=True)
        if one.uncompared
    ]
    return lines


def _layer_row(
    layer: str,
    folded: bool,
    means: Sequence[Mapping[str, float]],
    worst: Sequence[Mapping[str, tuple[float, float]]],
) -> list[str]:
    row = [layer + "*" * folded]
    for mean, high in zip(means, worst, strict=True):
        top = high.get(layer)
        row.append(_error(mean.get(layer)))
        row += ["-", "-"] if top is None else [_error(top[0]), f"{top[1]:g}"]
    return row


def _counts(names: Sequence[str], found: Sequence[Diagnosis]) -> list[str]:
    if not any(one.counts for one in found):
        return []
    heads = ["steps", *(f"{_lead(name, names)}latent" for name in names)]
    rows = [
        [str(row[0].steps), *(_error(r.latent) for r in row)]
        for row in zip(*(one.counts for one in found), strict=True)
    ]
    return [*_title("final latent by number of steps, free-running"), *_aligned([heads, *rows])]


def _seeds(spreads: Mapping[str, Sequence[SeedSpread]]) -> list[str]:
    rows = [
        [
            name,
            row.metric,
            str(len(row.seeds)),
            f"{row.mean:.4g}",
            f"{row.deviation:.2g}",
            f"{min(row.means):.4g} to {max(row.means):.4g}",
        ]
        for name, found in spreads.items()
        for row in found
    ]
    if not rows:
        return []
    heads = ["row", "metric", "seeds", "mean", "sd of the means", "range"]
    return [*_title("spread over calibration seeds, from the run"), *_aligned([heads, *rows])]


def _title(title: str) -> list[str]:
    return ["", title]


def _lead(name: str, names: Sequence[str]) -> str:
    """Name of the artifact before its first column, where there are two."""
    return "" if len(names) == 1 else f"{name}: "


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"


def _mean(values: Iterable[float]) -> str:
    found = list(values)
    return _error(statistics.fmean(found)) if found else "-"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of one width, the first to the left and the others to the right."""
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:<{n}}" if i == 0 else f"{cell:>{n}}"
            for i, (cell, n) in enumerate(zip(row, sizes, strict=True))
        ).rstrip()
        for row in rows
    ]
