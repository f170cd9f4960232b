"""The columns a table can have: which metric, in which block, with title and digits.

The only place that knows how a metric is shown. A metric that is not listed here still appears,
under its own name in the block of other metrics, so that a plug-in's metric needs no change in the
harness.
"""

from __future__ import annotations

from harness.report.column import (
    BLOCKS,
    CELL,
    COST,
    DELTA,
    FIDELITY,
    LAYERS,
    MEAN,
    OTHER,
    QUALITY,
    SPEEDUP,
    VBENCH,
    Column,
)
from harness.report.vbench_columns import VBENCH_COLUMNS

__all__ = [
    "BLOCKS",
    "CATALOGUE",
    "CELL",
    "COST",
    "DELTA",
    "FIDELITY",
    "FORMS",
    "LAYERS",
    "MEAN",
    "OTHER",
    "QUALITY",
    "SPEEDUP",
    "SPREADS",
    "STEP",
    "STEPS_FORM",
    "VBENCH",
    "Column",
    "other",
]

STEP = "step_latency_s"
STEPS_FORM = "steps_form_"  # sampling steps of a clip in one form of a step policy, by its index
FORMS = 8  # more forms than any policy has


def _oracle(aspect: str, title: str) -> Column:
    """Share of clips that show what was asked in one aspect."""
    return Column(
        metric=f"oracle_{aspect}", title=title, block=QUALITY, better="higher", digits=1, scale=100
    )


CATALOGUE: tuple[Column, ...] = (
    Column(
        metric="oracle_all",
        title="all right\n%",
        block=QUALITY,
        better="higher",
        digits=1,
        interval_digits=0,
        scale=100,
        interval=True,
    ),
    Column(
        metric="oracle_all",
        title="vs fp\npoints",
        block=QUALITY,
        kind=DELTA,
        digits=1,
        interval_digits=0,
        scale=100,
        interval=True,
    ),
    Column(metric="margin_all", title="margin", block=QUALITY, better="higher", digits=3),
    Column(
        metric="margin_all",
        title="vs fp\nmargin",
        block=QUALITY,
        kind=DELTA,
        digits=3,
        interval=True,
    ),
    _oracle("colour", "colour\n%"),
    _oracle("shape", "shape\n%"),
    _oracle("background", "backgr.\n%"),
    _oracle("motion", "motion\n%"),
    *(
        Column(
            metric=f"margin_{aspect}",
            title=f"margin\n{aspect}",
            block=QUALITY,
            better="higher",
            digits=3,
            shown=False,
        )
        for aspect in ("colour", "shape", "background", "motion")
    ),
    Column(metric="clipsim", title="CLIP\nSIM", block=QUALITY, better="higher", digits=4),
    Column(metric="clip_temp", title="CLIP\ntemp", block=QUALITY, digits=4),
    Column(
        metric="clipsim_evalcrafter",
        title="CLIPSIM\nEvalCrafter",
        block=QUALITY,
        better="higher",
        digits=4,
        shown=False,
    ),
    Column(
        metric="clip_temp_evalcrafter",
        title="CLIP temp\nEvalCrafter",
        block=QUALITY,
        digits=4,
        shown=False,
    ),
    *VBENCH_COLUMNS,
    Column(
        metric="psnr_db", title="PSNR\ndB", block=FIDELITY, better="higher", digits=2, interval=True
    ),
    Column(metric="ssim", title="SSIM", block=FIDELITY, better="higher", digits=3, interval=True),
    Column(
        metric="latent_error",
        title="latent\nerror",
        block=FIDELITY,
        better="lower",
        digits=3,
        significant=True,
        interval=True,
    ),
    Column(
        metric="latent_cosine", title="latent\ncosine", block=FIDELITY, better="higher", digits=4
    ),
    Column(metric="lpips", title="LPIPS", block=FIDELITY, better="lower", digits=3),
    Column(
        metric="fvd_r3d18_to_fp",
        title="FVD\nr3d18",
        block=FIDELITY,
        kind=CELL,
        better="lower",
        digits=1,
    ),
    Column(metric="avg_w_bits", title="W\nbits", block=COST, kind=CELL),
    Column(metric="avg_a_bits", title="A\nbits", block=COST, kind=CELL),
    Column(metric="clip_a_bits", title="A bits\na clip", block=COST, shown=False),
    *(
        Column(metric=f"{STEPS_FORM}{i}", title=f"steps\nform {i}", block=COST, shown=False)
        for i in range(FORMS)
    ),
    Column(metric="layers_quantized", title="layers\nquantized", block=COST, kind=LAYERS),
    Column(metric="layers_target", title="layers\ntarget", block=COST, kind=CELL, shown=False),
    Column(
        metric="weights_quantized", title="weights\nquantized", block=COST, kind=CELL, shown=False
    ),
    Column(metric="artifact_bytes", title="size\nMB", block=COST, kind=CELL, scale=1e-6),
    Column(metric="compression", title="vs\n16 bit", block=COST, kind=CELL, suffix="x"),
    Column(metric="calibration_s", title="calib.\ns", block=COST, kind=CELL, digits=1),
    Column(metric="calibration_forwards", title="calib.\nfwd", block=COST, kind=CELL, digits=0),
    Column(
        metric="calibration_samples",
        title="calib.\nsamples",
        block=COST,
        kind=CELL,
        digits=0,
        shown=False,
    ),
    Column(
        metric=STEP,
        title="step\nms",
        block=COST,
        kind=CELL,
        digits=1,
        scale=1e3,
        spread="step_latency_iqr_s",
        measured=True,
    ),
    Column(metric="step_speedup", title="speed\nvs fp", block=COST, kind=SPEEDUP, suffix="x"),
    Column(
        metric="clip_latency_s",
        title="clip\ns",
        block=COST,
        kind=CELL,
        digits=2,
        spread="clip_latency_iqr_s",
        measured=True,
    ),
    Column(
        metric="peak_bytes",
        title="peak\nMB",
        block=COST,
        kind=CELL,
        digits=0,
        scale=1e-6,
        measured=True,
    ),
)

SPREADS = frozenset(c.spread for c in CATALOGUE if c.spread)


def other(metric: str, *, better: str, whole_cell: bool) -> Column:
    """Column of a metric the catalogue does not know."""
    return Column(
        metric=metric,
        title=metric.replace("_", " "),
        block=OTHER,
        kind=CELL if whole_cell else MEAN,
        better=better,
        digits=4,
        significant=True,
        interval=not whole_cell,
    )
