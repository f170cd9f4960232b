"""The door from Python: quantize a loaded pipeline, load what came of it, run an experiment.

    import harness

    artifact = harness.quantize(pipeline, "s2q", bits="w4a6", out="cogvideox-s2q-w4a6")
    harness.load_quantized(another_pipeline, artifact.folder)
    run = harness.run_experiment(methods=["rtn", "s2q"], bits=["w4a6"], limit=4)
    run.frame()

The command line calls the same functions.
"""

from __future__ import annotations

import copy
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.bits import BitSpec
from harness.errors import UsageError
from harness.spec import GenSpec, Prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from diffusers import DiffusionPipeline

    from harness.store.records import Run

CALIBRATION_PROMPTS = 10  # as `harness run` records them


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A quantized model on disk.

    Attributes:
        folder: Where it lies; ``harness.load_quantized`` takes it, ``harness verify`` checks it.
        report: The method's report and the footprint: widths and errors by layer, average bits,
            bytes, what the calibration took.
    """

    folder: Path
    report: dict[str, Any]


def quantize(
    pipeline: DiffusionPipeline,
    method: str,
    *,
    bits: str,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    prompts: str | Sequence[str] = "calib-general",
    calibration_prompts: int = CALIBRATION_PROMPTS,
    gen: Mapping[str, Any] | None = None,
    seed: int = 0,
    inplace: bool = False,
    progress: Callable[[float, str], None] | None = None,
) -> Artifact:
    """Quantize the denoiser of a loaded pipeline, with calibration made for it.

    Trajectories of the calibration prompts are recorded where the method wants them, then the
    method runs, and what it left is verified before this returns.

    Args:
        pipeline: A full-precision text-to-video pipeline of diffusers, of a family that
            ``harness list models`` knows, on the device to compute on.
        method: Name of a method, or ``module:attribute`` of one's own.
        bits: ``w4a6``: weight bits, then activation bits.
        out: Folder of the artifact; must not exist, or be empty.
        options: Options that differ from the method's defaults (``harness show method NAME``).
        prompts: Calibration prompts: texts, a bundled suite, or a file of prompts.
        calibration_prompts: The first so many of them.
        gen: Generation settings that differ from the model's own: ``height``, ``width``,
            ``frames``, ``steps``, ``guidance``, ``max_text_tokens``.
        seed: Seed of everything random in the calibration.
        inplace: Quantize this pipeline's denoiser itself, which saves the memory of a copy; an
            error on the way leaves it half quantized. False leaves the pipeline as it is.
        progress: Called with a fraction and a text.

    Returns:
        The artifact.

    Raises:
        UsageError: A name, an option, a width or a setting cannot be meant, or ``out`` holds
            something.
        UnsupportedError: The method does not run on this model at this width.
        HarnessError: The artifact does not hold what was declared.
    """
    from harness.artifact.loaded import check_out, open_family, record_and_quantize
    from harness.plan.registry import load_method

    chosen, width, family = load_method(method), BitSpec.parse(bits), open_family(pipeline)
    settings = replace(own_settings(pipeline, family), **dict(gen or {}))
    texts: tuple[Prompt, ...] = ()
    if chosen.needs_calibration:
        texts = _prompts(prompts, calibration_prompts)
    target = check_out(Path(out))
    worked = pipeline
    if not inplace:
        worked = copy.copy(pipeline)
        worked.register_modules(transformer=copy.deepcopy(pipeline.transformer))
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        made = Path(scratch) / "artifact"
        made.mkdir()
        report = record_and_quantize(
            pipeline, worked, chosen, bits=width, options=dict(options or {}), family=family,
            gen=settings, prompts=texts, seed=seed, scratch=Path(scratch), out=made,
            progress=progress or _silent,
        )  # fmt: skip
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    return Artifact(folder=target, report=report)


def run_experiment(
    file: str | Path | Mapping[str, Any] | None = None,
    *,
    progress: bool = True,
    **flags: Any,
) -> Run:
    """Run an experiment as ``harness run`` does, and give its records.

    What the store has is found, what is missing is made by worker processes, and the run folder is
    written; the same call goes on where an interrupted one stopped.

    Args:
        file: An experiment file (TOML), or its content as a dict: ``{"run": {...}, ...}``.
        progress: Show progress on stderr.
        **flags: What ``harness run`` takes, without dashes: ``methods``, ``bits``, ``models``,
            ``suite``, ``limit``, ``seeds``, ``metrics``, ``out``, ``device``, ``jobs``,
            ``baselines``. Lists of names may be lists, tuples or one name.

    Returns:
        The run: ``frame()`` are its records as a DataFrame, ``cells`` its rows with their status.

    Raises:
        UsageError: The experiment cannot be meant.
        InfraError: The results cannot be written.
    """
    from harness.plan.experiment import resolve
    from harness.plan.experiment_file import ExperimentFile, load_file, read_table
    from harness.run.progress import ProgressMonitor
    from harness.run.run import Silent, execute, preflight, prepare
    from harness.store.store import Store

    if file is None:
        content = ExperimentFile()
    elif isinstance(file, (str, Path)):
        content = load_file(Path(file))
    else:
        content = read_table(dict(file), "the experiment")
    experiment, store = resolve(content, _flags(flags)), Store()
    prepared = prepare(experiment, store)
    preflight(prepared, store)
    command = ["harness.run_experiment", *sys.argv[:1]]
    if not progress:
        return execute(prepared, store, Silent(), command)
    with ProgressMonitor(prepared) as monitor:
        return execute(prepared, store, monitor, command)


def own_settings(pipeline: DiffusionPipeline, family: str) -> GenSpec:
    """The generation settings that a loaded pipeline is normally run with."""
    from harness.models.hub import FAMILY_GEN
    from harness.models.table import cogvideox_gen

    dtype = str(pipeline.transformer.dtype).removeprefix("torch.")
    if family == "cogvideox":
        scale: int = pipeline.vae_scale_factor_spatial
        return replace(cogvideox_gen(dict(pipeline.transformer.config), scale), dtype=dtype)
    return replace(FAMILY_GEN[family], dtype=dtype)


def _prompts(prompts: str | Sequence[str], count: int) -> tuple[Prompt, ...]:
    """Calibration prompts by suite, by file, or as texts."""
    from harness.plan.suites import load_suite

    if isinstance(prompts, str):
        return load_suite(prompts, limit=count, role="calibration").prompts
    texts = [text for text in prompts if text.strip()][:count]
    if not texts:
        raise UsageError("there are no calibration prompts", "give texts, or the name of a suite")
    return tuple(Prompt(id=f"prompt-{i:03d}", text=text) for i, text in enumerate(texts))


def _flags(given: Mapping[str, Any]) -> Any:
    """Flags of an experiment from keyword arguments.

    Raises:
        UsageError: One of them is unknown.
    """
    import dataclasses

    from harness.errors import unknown_name
    from harness.plan.experiment import Flags

    known = {f.name for f in dataclasses.fields(Flags)}
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise unknown_name("argument", name, known)
        several = name in ("models", "methods", "bits", "seeds", "metrics")
        if several and value is not None:
            value = (value,) if isinstance(value, (str, int)) else tuple(value)
        found[name] = Path(value) if name == "out" and value is not None else value
    return Flags(**found)


def _silent(fraction: float, text: str) -> None:
    """Discard progress."""
