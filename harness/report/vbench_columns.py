"""The columns of VBench: dimensions in hundredths, as papers print them, then the totals."""

from __future__ import annotations

from dataclasses import replace

from harness.report.column import CELL, DELTA, VBENCH, Column
from harness.vbench.aggregate import UNFILTERED
from harness.vbench.dimensions import CLOSENESS, DIMENSIONS, EIGHT

NO_BEST = (*CLOSENESS, UNFILTERED)
_SHORT = {
    "aesthetic_quality": "aesth.\nquality",
    "background_consistency": "backgr.\nconsist.",
    "imaging_quality": "imaging\nquality",
    "motion_smoothness": "motion\nsmooth.",
    "overall_consistency": "overall\nconsist.",
    "subject_consistency": "subject\nconsist.",
    UNFILTERED: "flicker.\nunfilt.",
}
DIMENSION_ORDER = tuple(dict.fromkeys([*EIGHT, *DIMENSIONS, UNFILTERED]))
"""The columns of the papers first, in their order."""
OFFICIAL = "official_"
SCORES = ("vbench_quality", "vbench_semantic", "vbench_total")


def _dimension(name: str) -> list[Column]:
    """A dimension of VBench in hundredths, as papers print it; the official aggregate beside it."""
    title = _SHORT.get(name, name.replace("_", "\n", 1))
    better = "none" if name in NO_BEST else "higher"
    mean = Column(
        metric=name,
        title=title,
        block=VBENCH,
        better=better,
        scale=100,
        interval=True,
        interval_digits=1,
    )
    return [
        mean,
        replace(mean, kind=DELTA, title=f"{title}\nvs fp", better="none", shown=False),
        replace(mean, metric=f"{name}_strict", title=f"{title}\nstrict", shown=False),
        replace(
            mean,
            metric=f"{OFFICIAL}{name}",
            title=f"{title}\nofficial",
            kind=CELL,
            interval=False,
            shown=False,
        ),
    ]


VBENCH_COLUMNS: tuple[Column, ...] = (
    *(column for name in DIMENSION_ORDER for column in _dimension(name)),
    *(
        Column(
            metric=name,
            title=name.replace("_", "\n"),
            block=VBENCH,
            kind=CELL,
            better="higher",
            scale=100,
        )
        for name in SCORES
    ),
    Column(metric="flow_score", title="flow\npixels", block=VBENCH, digits=2, interval=True),
    Column(
        metric="static_filter", title="static\n%", block=VBENCH, digits=1, scale=100, shown=False
    ),
)
