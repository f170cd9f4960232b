"""The experiment: TOML file and flags, resolved into plain values with every default filled in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from harness.bits import BitSpec
from harness.errors import UsageError
from harness.kernels.registry import AUTO, OFF, check_setting
from harness.models.offload import NONE
from harness.models.request import changed
from harness.models.table import BUNDLED
from harness.plan.experiment_file import ExperimentFile, GenSection, MethodSection
from harness.plan.registry import several
from harness.plug_in import check_spelling
from harness.score.names import expand
from harness.score.vbench_plan import JudgeSettings
from harness.spec import FP, GenSpec, MethodSpec
from harness.vbench.suites import is_name

_T = TypeVar("_T")

BASELINES = ("control", "rtn")
DEFAULT_MODELS = ("shapes",)
DEFAULT_METHODS = ("s2q", "ptq4dit")
DEFAULT_BITS = ("w4a6",)
DEFAULT_SUITE = "shapes-eval"  # of bundled models, which know no other words
GENERAL_SUITE = "eval-general"  # of all others
DEFAULT_LIMIT = 16
DEFAULT_CALIBRATION = "shapes-calib"
GENERAL_CALIBRATION = "calib-general"
DEFAULT_BUDGET = "quick"
DEFAULT_CALIBRATION_PROMPTS = 10
DEFAULT_STALL_S = 1800.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """What was typed on the command line; None where nothing was."""

    models: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    bits: tuple[str, ...] | None = None
    suite: str | None = None
    limit: int | None = None
    seeds: tuple[int, ...] | None = None
    out: Path | None = None
    device: str | None = None
    jobs: int | None = None
    baselines: bool | None = None
    metrics: tuple[str, ...] | None = None
    offload: str | None = None
    kernels: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodRow:
    """A method of the experiment with the widths it is run at."""

    method: MethodSpec
    bits: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How the work is spread.

    Attributes:
        jobs: Workers side by side; None for cores divided by threads.
        threads: Threads a worker computes with; part of the cohort.
        stall_s: Longest a worker may be silent; how long it works is not limited.
        device: None to choose a CUDA device where there is one.
        measure: Whether latency and memory are measured at the end.
        offload: What of a model stays in the host's memory, of ``harness.models.offload.OFFLOADS``;
            no result but latency and memory depends on it, and that rows are simulated then.
        kernels: What computes quantized layers: ``auto``, ``off`` for simulation, or the name of an
            installed kernel; part of the key of what they compute.
    """

    jobs: int | None
    threads: int
    stall_s: float
    device: str | None
    measure: bool
    offload: str = NONE
    kernels: str = AUTO

    @property
    def keyed_kernels(self) -> str:
        """What a key says of kernels: no kernel's layout travels between devices."""
        return self.kernels if self.offload == NONE else OFF


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """What to compare, every default filled in.

    Attributes:
        limit: First so many prompts; None for the whole suite.
        seeds: Seeds of the initial noise; empty for as many as the suite asks of each prompt.
        gen: Overrides of each model's generation settings.
        calibration_prompts: Prompts whose trajectories are recorded for calibration.
        calibration_budget: ``quick`` shortens the training of methods on bundled models (the table
            says so), ``full`` runs every method at its own defaults.
        lenient: Methods that a group name (``all``, ``baselines``) stands for: one of them that
            cannot be loaded is an unsupported row, not an error.
        metrics: What is judged beside the metrics that are always there; None for what fits the
            suite.
    """

    models: tuple[str, ...]
    rows: tuple[MethodRow, ...]
    suite: str
    limit: int | None
    seeds: tuple[int, ...]
    gen: tuple[tuple[str, Any], ...]
    calibration_suite: str
    calibration_prompts: int
    calibration_budget: str
    execution: Execution
    out: Path | None
    lenient: tuple[str, ...] = ()
    metrics: tuple[str, ...] | None = None
    judge: JudgeSettings = field(default_factory=JudgeSettings)

    def gen_for(self, default: GenSpec) -> GenSpec:
        """A model's generation settings with the overrides applied."""
        return changed(default, dict(self.gen))


def resolve(file: ExperimentFile, flags: Flags) -> Experiment:
    """Merge file and flags and fill in the defaults; flags win.

    Raises:
        UsageError: A width cannot be read, a metric is unknown, or two rows have the same name.
    """
    run = file.run
    bits = _widths(flags.bits or tuple(run.bits or DEFAULT_BITS))
    seed = file.calibration.seed or 0
    named = flags.methods or (tuple(run.methods) if run.methods else None)
    chosen = None if named is None else _ungrouped(named)
    lenient = tuple(n for n in chosen or () if n not in (named or ()))
    rows = _rows(file.method, chosen, bits, seed)
    baselines = flags.baselines if flags.baselines is not None else run.baselines is not False
    rows = _with_references(rows, bits, seed, BASELINES if baselines else ())
    labels = [row.method.label for row in rows]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise UsageError(f"two rows are called '{twice[0]}'", "give each [[method]] its own label")
    execution = file.execution
    gen = gen_changes(file.gen)
    out = flags.out or (Path(run.out) if run.out else None)
    models = _unique(flags.models or tuple(run.models or DEFAULT_MODELS))
    suite = flags.suite or run.suite or default_suite(models)
    whole = is_name(suite)
    metrics = flags.metrics or (tuple(run.metrics) if run.metrics else None)
    return Experiment(
        models=models,
        rows=rows,
        suite=suite,
        limit=flags.limit or run.limit or (None if whole else DEFAULT_LIMIT),
        seeds=_unique(flags.seeds or tuple(run.seeds or (() if whole else (0,)))),
        gen=tuple(sorted(gen.items())),
        calibration_suite=file.calibration.suite or _calibration_suite(models),
        calibration_prompts=file.calibration.prompts or DEFAULT_CALIBRATION_PROMPTS,
        calibration_budget=file.calibration.budget or DEFAULT_BUDGET,
        execution=Execution(
            jobs=flags.jobs or execution.jobs,
            threads=execution.threads or 1,
            stall_s=float(execution.stall_s or DEFAULT_STALL_S),
            device=flags.device or execution.device,
            measure=execution.measure is not False,
            offload=flags.offload or execution.offload or NONE,
            kernels=_kernels(flags.kernels or execution.kernels or AUTO),
        ),
        out=out,
        lenient=lenient,
        metrics=None if metrics is None else expand(metrics),
        judge=_judge(file),
    )


_FLOATS = ("guidance", "guidance_2", "flow_shift")


def gen_changes(section: GenSection) -> dict[str, Any]:
    """What ``[gen]`` names, by name in ``GenSpec``, whole numbers as floats where it has floats."""
    given = section.model_dump(exclude_none=True)
    return {n: float(v) if n in _FLOATS else v for n, v in given.items()}


def _judge(file: ExperimentFile) -> JudgeSettings:
    given = file.vbench.model_dump(exclude_none=True)
    return JudgeSettings(python=file.envs.vbench.python, **given)


def default_suite(models: tuple[str, ...]) -> str:
    """The evaluation prompts that fit the models.

    Raises:
        UsageError: No suite fits all of them.
    """
    if _all_bundled(models, "evaluated", "choose: --suite"):
        return DEFAULT_SUITE
    return GENERAL_SUITE


def _calibration_suite(models: tuple[str, ...]) -> str:
    """The calibration prompts that fit the models.

    Raises:
        UsageError: No suite fits all of them.
    """
    choose = "choose: [calibration] suite = ... in the experiment file"
    return (
        DEFAULT_CALIBRATION if _all_bundled(models, "calibrated", choose) else GENERAL_CALIBRATION
    )


def _all_bundled(models: tuple[str, ...], done: str, choose: str) -> bool:
    """Whether the models are the bundled ones.

    Raises:
        UsageError: Some are and some are not.
    """
    bundled = [name for name in models if name in BUNDLED]
    if bundled and len(bundled) < len(models):
        raise UsageError(
            f"'{bundled[0]}' and other models are {done} on different prompts",
            f"run them apart, or {choose}",
        )
    return bool(bundled)


def _ungrouped(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names with ``all`` and ``baselines`` replaced by what they stand for."""
    return _unique(tuple(name for given in names for name in several(given) or (given,)))


def _rows(
    sections: list[MethodSection], chosen: tuple[str, ...] | None, bits: tuple[str, ...], seed: int
) -> tuple[MethodRow, ...]:
    """The rows asked for: a chosen name takes its ``[[method]]`` entries, or stands for itself."""
    if chosen is None:
        if sections:
            return tuple(row for section in sections for row in _variants(section, bits, seed))
        chosen = DEFAULT_METHODS
    rows: list[MethodRow] = []
    for name in _unique(chosen):
        entries = [s for s in sections if name in (s.label, s.name)]
        entries = entries or [MethodSection(name=name)]
        rows += [row for section in entries for row in _variants(section, bits, seed)]
    return tuple(row for i, row in enumerate(rows) if row not in rows[:i])


def _variants(section: MethodSection, bits: tuple[str, ...], seed: int) -> list[MethodRow]:
    if ":" in section.name:
        check_spelling("method", section.name)
    label = section.label or section.name.replace(":", ".")
    if not label or any(c in "/\\" or c.isspace() for c in label) or label.startswith("."):
        raise UsageError(f"label '{label}' cannot name a folder", "use no spaces and no slashes")
    if section.calibration_seeds is not None:
        if section.calibration_seed is not None:
            raise UsageError(
                f"[[method]] '{label}' has calibration_seed and calibration_seeds", "keep one"
            )
        seeds = [(f"{label}#{s}", s) for s in _unique(tuple(section.calibration_seeds))]
    else:
        one = section.calibration_seed
        seeds = [(label, seed if one is None else one)]
    options = tuple(sorted((k, _frozen(v)) for k, v in section.options.items()))
    widths = _widths(tuple(section.bits)) if section.bits else bits
    return [
        MethodRow(
            method=MethodSpec(name=section.name, label=name, options=options, calibration_seed=s),
            bits=widths,
        )
        for name, s in seeds
    ]


def _with_references(
    rows: tuple[MethodRow, ...], bits: tuple[str, ...], seed: int, baselines: tuple[str, ...]
) -> tuple[MethodRow, ...]:
    """Put the reference first and the baselines that are not asked for by name after it."""
    widths = tuple(dict.fromkeys([*bits, *(b for row in rows for b in row.bits)]))
    given = {row.method.label: row for row in rows}
    first = [given.get(name) or _plain(name, widths, seed) for name in (FP, *baselines)]
    return (*first, *(row for row in rows if row not in first))


def _plain(name: str, bits: tuple[str, ...], seed: int) -> MethodRow:
    return MethodRow(method=MethodSpec(name=name, label=name, calibration_seed=seed), bits=bits)


def _widths(bits: tuple[str, ...]) -> tuple[str, ...]:
    return _unique(tuple(str(BitSpec.parse(text)) for text in bits))


def _unique(values: tuple[_T, ...]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys(values))


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _kernels(setting: str) -> str:
    check_setting(setting)
    return setting
