"""What ``harness doctor`` says about VBench: optional, so nothing here makes a run impossible."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.vbench.environment import Environment

    Check = tuple[str, str, bool | None]

NO_DETECTOR = "needs detectron2, which no package index has: docs/vbench.md"
_CHECK_S = 120.0  # importing every dimension from a cold disk; 6 s on a warm one


def rows() -> list[Check]:
    """The environment, the measures that make it work, and each dimension with its weights.

    Returns:
        Name, state and whether it is fine; None where something optional is not there.
    """
    from harness.errors import HarnessError
    from harness.vbench import environment

    try:
        found = environment.find()
        if found is None:
            return [("vbench", environment.missing_line(), None)]
        checked = environment.check(found.python, timeout_s=_CHECK_S)
    except HarnessError as cause:
        return [("vbench", f"{cause.message}: {cause.hint}", False)]
    measures = [row for row in checked if row["kind"] == "compat"]
    imports = {row["name"]: row["detail"] for row in checked if row["kind"] == "dimension"}
    refused = {row["name"] for row in checked if row["kind"] == "dimension" and not row["ok"]}
    return [
        *_environment(found),
        *_measures([(row["name"], row["detail"], row["ok"]) for row in measures]),
        *_dimensions(imports, refused, detector=found.detector),
    ]


def _environment(found: Environment) -> list[Check]:
    from harness.vbench import build, environment

    rows: list[Check] = [("vbench", f"{found.line}; {found.python}", True)]
    rows += [("vbench", problem, None) for problem in found.problems]
    ours = found.python == environment.python_of(environment.folder())
    if ours and not build.is_built():
        rows.append(
            ("vbench", f"built with other versions than locked: {environment.REMEDY}", None)
        )
    return rows


def _measures(measures: list[tuple[str, str, bool]]) -> list[Check]:
    """One line for those that hold, one for each that does not."""
    held = [f"{name} {detail}".strip() for name, detail, ok in measures if ok]
    broken: list[Check] = [("vbench compat", f"{n}: {d}", False) for n, d, ok in measures if not ok]
    return [("vbench compat", ", ".join(held), True), *broken] if held else broken


def _dimensions(imports: dict[str, str], refused: set[str], *, detector: bool) -> list[Check]:
    """Each dimension: whether it can be computed, or what keeps it from that."""
    from harness.vbench import weights
    from harness.vbench.dimensions import DIMENSIONS, EXTRA_WEIGHTS

    needs = {name: row.weights for name, row in DIMENSIONS.items()} | EXTRA_WEIGHTS
    folder = weights.folder()
    found: list[Check] = []
    for name, ids in needs.items():
        if name in DIMENSIONS and DIMENSIONS[name].detector and not detector:
            found.append((name, NO_DETECTOR, None))
        elif name in refused:
            found.append((name, f"cannot run: {imports[name]}", None))
        elif weights.missing(ids, folder):
            found.append((name, weights.missing_line(name, ids), None))
        else:
            found.append((name, "can be computed", True))
    return found
