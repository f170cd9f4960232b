"""The values that describe an experiment: model, generation, prompts, cells, records.

Everything here is plain data, immutable, and free of torch, so that planning and reporting stay
light.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

FP = "fp"
"""The unquantized reference: its row, its method, and the width of rows that are not quantized."""

SIMULATED = "simulated"
KERNEL = "kernel:"
DEQUANTIZE = "dequantize"
"""How layers compute whose low-bit values are computed in floating point."""

QUALITY, VBENCH, FIDELITY, COST, OTHER = "quality", "VBench", "fidelity to fp", "cost", "other"
BLOCKS = (QUALITY, VBENCH, FIDELITY, COST, OTHER)
"""The blocks of a table, in its order."""


class Status(enum.StrEnum):
    """How a cell or a value ended."""

    OK = "ok"
    UNSUPPORTED = "unsupported"
    OOM = "oom"
    TIMEOUT = "timeout"
    KILLED = "killed"
    ERROR = "error"
    SKIPPED = "skipped"
    DIVERGED = "diverged"


@dataclass(frozen=True, kw_only=True, slots=True)
class GenSpec:
    """How a clip is generated; part of every clip's key.

    Attributes:
        height: Frame height in pixels.
        width: Frame width in pixels.
        frames: Frames a clip.
        fps: Frames a second of the written video.
        steps: Denoising steps.
        guidance: Classifier-free guidance scale; 1 switches it off.
        dtype: Computing dtype, ``float32``, ``bfloat16`` or ``float16``.
        max_text_tokens: Length the prompt is padded or cut to.
        negative_prompt: What guidance leads away from.
        vae_tiling: Whether the decoder works tile by tile, which changes pixels; None to tile what
            is larger than a bound (``harness.models.tiling``), as planning fills in.
        flow_shift: Shift of the scheduler's steps; None for the scheduler's own.
        guidance_2: Guidance scale of the second of two denoisers; None for that of the first.
    """

    height: int
    width: int
    frames: int
    fps: int
    steps: int
    guidance: float
    dtype: str = "float32"
    max_text_tokens: int = 226
    negative_prompt: str = ""
    vae_tiling: bool | None = None
    flow_shift: float | None = None
    guidance_2: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A model by name, hub id or folder.

    Attributes:
        name: What the user types and the table prints.
        repo: Hub id or absolute folder in diffusers format.
        revision: Commit of the hub repository; empty until resolved and locked at first use.
        family: Name of the entry in ``harness.models.families``.
        gen: The generation settings the model is normally run with.
        variant: A derived form of the same weights (``outliers``: ``shapes-outliers``), else empty.
        judge: Name of a model-specific metric group (``oracle`` for the bundled model), else empty.
        locked: How the revision came about where it was not released with this package, else empty.
    """

    name: str
    repo: str
    family: str
    gen: GenSpec
    revision: str = ""
    variant: str = ""
    judge: str = ""
    locked: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One prompt of a suite; ``id`` names files, never the text."""

    id: str
    text: str
    tags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSuite:
    """A versioned set of prompts.

    Attributes:
        name: What the user types.
        version: Raised with any change of the texts.
        role: ``eval`` or ``calibration``; the planner refuses overlap between the two.
        prompts: In order; ``--limit n`` takes the first n.
        digest: sha256 of the canonical JSON of the prompts used.
        source: The installed package whose list it was read from, with that list's digest; empty
            for bundled suites and files. Said, never hashed: ``digest`` covers what was read.
    """

    name: str
    version: int
    role: str
    prompts: tuple[Prompt, ...]
    digest: str
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodSpec:
    """A method with its options, as one row of the experiment.

    Attributes:
        name: Registered name of the method.
        label: What the table prints; the name unless the experiment file gives another.
        options: Options that differ from the method's defaults, sorted pairs of JSON values.
        calibration_seed: Seed of everything random in the calibration.
    """

    name: str
    label: str
    options: tuple[tuple[str, Any], ...] = ()
    calibration_seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One row of the table: a model quantized by a method at a width, on a suite.

    Attributes:
        bits: ``w4a6`` and the like; ``fp`` for rows that are not quantized (``fp``, ``control``).
        seeds: Seeds of the initial noise; empty for as many as the suite asks of each prompt.
    """

    model: ModelSpec
    method: MethodSpec
    bits: str
    suite: str
    gen: GenSpec
    seeds: tuple[int, ...] = (0,)

    @property
    def id(self) -> str:
        """Name of the cell, unique in a run and fit for a folder."""
        return f"{self.model.name}--{self.method.label}--{self.bits}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """All that is known of a metric but how it is computed; a run keeps it beside its records.

    Attributes:
        name: Name in the records, e.g. ``psnr_db``.
        unit: ``dB``, ``s``, ``bytes``, ``ratio``, ``bool``, ``margin``, ``bits``...
        better: ``higher``, ``lower`` or ``none``.
        title: Head of its column; a line break splits it where a renderer has several lines.
        block: One of ``BLOCKS``.
        whole: One value for the row, not one for each clip.
        digits: Decimals; with ``significant``, significant digits.
        significant: Whether ``digits`` counts significant digits.
        scale: Shown value = recorded value x scale.
        suffix: Printed after the number.
        interval: Whether the interval of the mean is printed (it is always in the CSV).
        interval_digits: Decimals of the interval's ends where fewer do.
        difference: Title of a second column, the paired differences to the fp row; empty for none.
        difference_shown: False where only the CSV has that column.
        spread: Metric that is printed after the value as +-; it has no column of its own.
        measured: Taken of what ran: a simulated row prints ``simulated`` instead.
        shown: False for a column that only the CSV has.
        headline: Shown where there is room for few: comparisons, the results page.
        closeness: A clip that is frozen or noise can lead it: read as closeness to fp.
        aggregate_of: Metric whose official aggregate this is; printed only where it differs from
            the mean by what is printed.
    """

    name: str
    unit: str
    better: str = "none"
    title: str = ""
    block: str = OTHER
    whole: bool = False
    digits: int = 2
    significant: bool = False
    scale: float = 1.0
    suffix: str = ""
    interval: bool = False
    interval_digits: int | None = None
    difference: str = ""
    difference_shown: bool = True
    spread: str = ""
    measured: bool = False
    shown: bool = True
    headline: bool = False
    closeness: bool = False
    aggregate_of: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """What a stage says of one metric of a row, before it is known of which run.

    Attributes as in ``Record``.
    """

    metric: str
    value: float | None = None
    prompt: str = ""
    seed: int = -1
    status: Status = Status.OK
    key: str = ""
    at: str = ""
    detail: str = ""
    scorer: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One value: the only thing that tables, comparisons and gates read.

    Attributes:
        cell: ``Cell.id``.
        metric: Name of the metric, e.g. ``psnr_db``.
        prompt: Prompt id; empty for a value of the whole cell.
        seed: Seed of the initial noise; -1 for a value of the whole cell.
        value: The number; None where the status is not ``ok``.
        unit: ``dB``, ``s``, ``bytes``, ``ratio``, ``bool``, ``margin``, ``bits``...
        better: ``higher``, ``lower`` or ``none``.
        key: Store key of what the value was computed from.
        at: UTC time in ISO format when the value was computed.
        detail: Reason for a status other than ``ok``, or a qualifier such as ``simulated``.
        scorer: Who judged, where it is not this package: version, weights, device, precision.
    """

    run: str
    cell: str
    model: str
    method: str
    bits: str
    suite: str
    metric: str
    prompt: str
    seed: int
    value: float | None
    unit: str
    better: str
    status: Status = Status.OK
    key: str = ""
    at: str = ""
    detail: str = ""
    scorer: str = ""
    schema: int = field(default=1)
