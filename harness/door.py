"""The door from Python: quantize a loaded pipeline, load what came of it, run an experiment.

    import harness

    pipeline = harness.load_pipeline("shapes")
    artifact = harness.quantize(pipeline, "rtn", bits="w4a6", out="shapes-rtn-w4a6")
    harness.load_quantized(pipeline, artifact.folder)
    run = harness.run_experiment(methods=["rtn", "s2q"], bits=["w4a6"], limit=4)
    run.frame()

The command line calls the same functions.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from harness.bits import BitSpec
from harness.errors import UsageError, unknown_name
from harness.spec import GenSpec, Prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from diffusers import DiffusionPipeline

    from harness.method import Method
    from harness.store.records import Run

_SETTINGS = (
    "height",
    "width",
    "frames",
    "steps",
    "guidance",
    "max_text_tokens",
    "negative_prompt",
    "flow_shift",
    "guidance_2",
)


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


def load_pipeline(
    model: str | Path, *, device: str | None = None, dtype: str | None = None
) -> DiffusionPipeline:
    """Load a model as ``harness run`` does.

    Args:
        model: A bundled name (``shapes``), a folder in diffusers format, or a model of the hub by
            short name or id, at the commit that was locked when this machine first used it.
        device: ``cpu``, ``cuda``, ``cuda:1``; None for a GPU where there is one.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None for the model's own.

    Returns:
        A pipeline of diffusers, ready to sample.

    Raises:
        UsageError: There is no such model.
        HarnessError: It cannot be loaded, or belongs to no supported family.
    """
    import torch

    from harness.models.experts import part_experts_
    from harness.models.load import load_pipeline as load
    from harness.models.table import model_spec

    if dtype not in (None, *(known := ("float32", "bfloat16", "float16"))):
        raise unknown_name("dtype", str(dtype), known)
    spec = model_spec(str(model))
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = load(spec, device=chosen, dtype=dtype or spec.gen.dtype)
    part_experts_(pipeline)
    return pipeline


def load_quantized(pipeline: DiffusionPipeline, artifact: str | Path) -> DiffusionPipeline:
    """Put an artifact into a diffusers pipeline, in place: all that a user of the model needs.

    Args:
        pipeline: A full-precision pipeline of the model that the artifact was made from. It may be
            compiled, and ``enable_model_cpu_offload()`` may have been called on it; other ways of
            offloading are to be called afterwards.
        artifact: Folder of the artifact. It stays what is kept of the model, with the
            full-precision pipeline: ``save_pretrained`` of a quantized one refuses.

    Returns:
        The same pipeline, its denoiser quantized. After an error it is as it was.

    Raises:
        UsageError: The pipeline has no denoiser, one that is quantized already or in another
            dtype, or one whose weights something else holds.
        HarnessError: The folder is no artifact, is damaged, or belongs to another model.
    """
    from harness.artifact.loaded import open_family
    from harness.quant.layers.artifact import load_quantized as load

    open_family(pipeline, to_quantize=False)
    return load(pipeline, Path(artifact).expanduser())


def load_run(folder: str | Path) -> Run:
    """Read what ``harness run`` or ``run_experiment`` left.

    Args:
        folder: The run folder.

    Returns:
        The run: ``frame()`` are its records as a DataFrame, ``cells`` its rows with their status.

    Raises:
        HarnessError: The folder is not a run or was written by another schema.
    """
    from harness.store.records import load_run as load

    return load(Path(folder).expanduser())


def quantize(
    pipeline: DiffusionPipeline,
    method: str | Method | type[Method],
    *,
    bits: str,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    prompts: str | Sequence[str] | None = None,
    calibration_prompts: int | None = None,
    gen: Mapping[str, Any] | None = None,
    seed: int = 0,
    inplace: bool = False,
    progress: Callable[[float, str], None] | None = None,
) -> Artifact:
    """Quantize the denoiser of a loaded pipeline, with calibration made for it.

    Trajectories of the calibration prompts are recorded where the method wants them, then the
    method runs, and what it left is verified before this returns. All of it happens in a hidden
    folder beside ``out``, which becomes ``out`` at the end and is gone after an error.

    Args:
        pipeline: A full-precision text-to-video pipeline of diffusers, of a family that
            ``harness list models`` knows, on the device to compute on.
        method: Name of a method, ``module:attribute`` of one's own, or the class or object itself.
        bits: ``w4a6``: weight bits, then activation bits.
        out: Folder of the artifact; must not exist, or be empty.
        options: Options that differ from the method's defaults (``harness show method NAME``).
        prompts: Calibration prompts: a list of texts, a bundled suite, or a file of prompts. None
            for the suite that ``harness run`` takes for the model.
        calibration_prompts: The first so many of them; None for all texts of a list, and for the
            first 10 of a suite or a file.
        gen: Generation settings that differ from the model's own: ``height``, ``width`` (pixels),
            ``frames``, ``steps``, ``guidance``, ``max_text_tokens``, ``negative_prompt``,
            ``flow_shift``, ``guidance_2``.
        seed: Seed of everything random in the calibration.
        inplace: Quantize this pipeline's denoiser itself, which saves the memory of a copy; an
            error on the way leaves it half quantized. False leaves the pipeline as it is.
        progress: Called with a fraction from 0 to 1 and a text.

    Returns:
        The artifact.

    Raises:
        UsageError: A name, an option, a width or a setting cannot be meant, or ``out`` holds
            something.
        UnsupportedError: The method does not run on this model at this width.
        InfraError: ``out`` cannot be written.
        HarnessError: The denoiser belongs to no supported family, or the artifact does not hold
            what was declared.
    """
    from harness.artifact import loaded

    family, target = loaded.open_family(pipeline), loaded.check_out(Path(out))
    chosen, width, values = _method(method), BitSpec.parse(str(bits)), dict(options or {})
    loaded.check_request(chosen, values, family, width)
    settings = _with_changes(loaded.own_settings(pipeline), gen or {})
    loaded.check_settings(pipeline, settings)
    texts: tuple[Prompt, ...] = ()
    if chosen.needs_calibration:
        texts = _prompts(_suite_for(pipeline) if prompts is None else prompts, calibration_prompts)
    worked = loaded.working_pipeline(pipeline, inplace=inplace)
    with loaded.made_whole(target) as scratch:
        report = loaded.record_and_quantize(
            worked, chosen, bits=width, options=values, family=family, gen=settings,
            prompts=texts, seed=seed, scratch=scratch, progress=progress or _silent,
        )  # fmt: skip
    if inplace:
        loaded.keep_from_saving_(pipeline, target)
    return Artifact(folder=target, report=report)


def run_experiment(
    file: str | Path | Mapping[str, Any] | None = None,
    *,
    progress: bool = True,
    **flags: Any,
) -> Run:
    """Run an experiment as ``harness run`` does, and give its records.

    What the store has is found, what is missing is made by worker processes, and the run folder is
    written; the same call goes on where an interrupted one stopped. A row that fails does not
    raise: its status says so.

    Args:
        file: An experiment file (TOML), or its content as a dict: ``{"run": {...}, ...}``.
        progress: Show progress on stderr.
        **flags: What ``harness run`` takes, without dashes; they override the file. Names, or
            texts with commas between them, or lists: ``methods``, ``bits``, ``models``,
            ``metrics``. Integers: ``seeds`` (or a list of them), ``limit``, ``jobs``. Texts:
            ``suite``, ``out``, ``device``. A bool: ``baselines``.

    Returns:
        The run: ``frame()`` are its records as a DataFrame, ``cells`` its rows with their status,
        ``folder`` where it and its tables lie.

    Raises:
        UsageError: The experiment cannot be meant.
        InfraError: The results cannot be written.
    """
    from rich.console import Console

    from harness.plan.arguments import given_file, given_flags
    from harness.plan.experiment import resolve
    from harness.plug_in import importable
    from harness.report import render_run
    from harness.run.progress import ProgressMonitor
    from harness.run.run import Silent, execute, preflight, prepare
    from harness.store.store import Store

    experiment, store = resolve(given_file(file), given_flags(flags)), Store()
    prepared = prepare(experiment, store)
    preflight(prepared, store)
    command = ["harness.run_experiment", *sys.argv[:1]]
    with importable([*(r.method.name for r in experiment.rows), *(experiment.metrics or ())]):
        if progress:
            with ProgressMonitor(prepared) as monitor:
                run = execute(prepared, store, monitor, command)
        else:
            run = execute(prepared, store, Silent(), command)
    render_run(prepared.folder, Console(quiet=True))
    return run


def _suite_for(pipeline: DiffusionPipeline) -> str:
    """The calibration suite that ``harness run`` takes for a model."""
    from harness.artifact.loaded import is_bundled
    from harness.plan.experiment import DEFAULT_CALIBRATION, GENERAL_CALIBRATION

    return DEFAULT_CALIBRATION if is_bundled(pipeline) else GENERAL_CALIBRATION


def _method(given: Any) -> Method:
    """A method by name, by class or as it is."""
    from harness.plan.registry import load_method

    if isinstance(given, str):
        return load_method(given)
    made: Any = given() if isinstance(given, type) else given
    if not callable(getattr(made, "quantize_", None)):
        raise UsageError(
            f"{given!r} is no method", "give a name, or a subclass of harness.api.Method"
        )
    method: Method = made
    return method


def _with_changes(own: GenSpec, changes: Mapping[str, Any]) -> GenSpec:
    """Generation settings with changes, held to the types and bounds of ``[gen]``.

    Raises:
        UsageError: A setting is unknown, has another type, or lies out of its bounds.
    """
    from harness.models.request import changed
    from harness.plan.experiment import gen_changes
    from harness.plan.experiment_file import read_table

    for name in changes:
        if name not in _SETTINGS:
            raise unknown_name("generation setting", str(name), _SETTINGS)
    return changed(own, gen_changes(read_table({"gen": dict(changes)}, "quantize").gen))


def _prompts(prompts: str | Sequence[str], count: int | None) -> tuple[Prompt, ...]:
    """Calibration prompts by suite, by file, or as texts.

    Raises:
        UsageError: There are none, or something else was given.
    """
    from harness.plan.experiment import DEFAULT_CALIBRATION_PROMPTS
    from harness.plan.suites import load_suite

    if count is not None and (not isinstance(count, int) or count < 1):
        raise UsageError(
            f"calibration_prompts is {count!r}", "give a number of at least 1, or None"
        )
    if isinstance(prompts, (str, PurePath)):
        limit = count or DEFAULT_CALIBRATION_PROMPTS
        return load_suite(str(prompts), limit=limit, role="calibration").prompts
    given = list(prompts)
    if wrong := [text for text in given if not isinstance(text, str)]:
        raise UsageError(f"calibration prompt {wrong[0]!r} is no text", "give a list of texts")
    texts = [text for text in given if text.strip()][:count]
    if not texts:
        raise UsageError("there are no calibration prompts", "give texts, or the name of a suite")
    return tuple(Prompt(id=f"prompt-{i:03d}", text=text) for i, text in enumerate(texts))


def _silent(fraction: float, text: str) -> None:
    """Discard progress."""
