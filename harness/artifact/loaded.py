"""Quantizing a pipeline that somebody else has loaded: what is checked, recorded and verified."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from harness.artifact.quantize import quantize
from harness.artifact.stage import REPORT
from harness.artifact.verify import verify
from harness.errors import InfraError, UnsupportedError, UsageError
from harness.method import resolve_options
from harness.models.admission import admit
from harness.models.description import describe_loaded
from harness.models.experts import (
    FIRST,
    SECOND,
    WanExperts,
    denoiser_of,
    join_experts_,
    replace_denoiser_,
)
from harness.models.families import family_name_of
from harness.models.families.parts import parts_of
from harness.models.request import check_request as check_generation
from harness.models.settings import settle
from harness.models.shapes import weights_dir
from harness.models.skeleton import empty_denoiser
from harness.models.table import SHAPES_WEIGHTS
from harness.models.trajectories import record_pool
from harness.quant.layers.layers import quantized_layers
from harness.quant.layers.stored import model_config
from harness.quant.layers.wrapped import refuse_saving_, unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from diffusers import DiffusionPipeline

    from harness.bits import BitSpec
    from harness.method import Method
    from harness.spec import GenSpec, Prompt

_RECORDING = 0.1  # share of the progress that recording trajectories takes


def open_family(pipeline: DiffusionPipeline, *, to_quantize: bool = True) -> str:
    """Family of a loaded pipeline's denoiser.

    Args:
        pipeline: The pipeline.
        to_quantize: A method shall work on the denoiser, which must then be neither compiled nor
            moved between devices while it runs.

    Raises:
        UsageError: It has none, one that is quantized already, or one in no state to be quantized.
        HarnessError: The denoiser belongs to no supported family, or is of two that do not fit.
    """
    transformer = getattr(pipeline, "transformer", None)
    if not isinstance(transformer, nn.Module):
        raise UsageError(
            f"a {type(pipeline).__name__} has no transformer to quantize",
            "give a loaded text-to-video pipeline of diffusers",
        )
    given = [m for m in (getattr(pipeline, n, None) for n in (FIRST, SECOND)) if m is not None]
    if to_quantize and any(unwrapped(network) is not network for network in given):
        raise UsageError(
            "the denoiser of this pipeline is compiled", "quantize first, call torch.compile after"
        )
    denoiser = denoiser_of(pipeline)
    networks = parts_of(denoiser).values()
    library = any(getattr(network, "hf_quantizer", None) is not None for network in networks)
    if quantized_layers(denoiser) or library:
        raise UsageError(
            "the denoiser of this pipeline is quantized already", "load the pipeline again"
        )
    if to_quantize and any(hasattr(network, "_hf_hook") for network in networks):
        raise UsageError(
            "the denoiser of this pipeline is moved between devices while it runs",
            "call enable_model_cpu_offload() and the like afterwards",
        )
    return family_name_of(type(denoiser).__name__)


def own_settings(pipeline: DiffusionPipeline) -> GenSpec:
    """The generation settings that ``harness run`` takes for the model of a loaded pipeline.

    Raises:
        HarnessError: It is no text-to-video pipeline that is sampled.
    """
    description = describe_loaded(pipeline)
    admit(description)
    return replace(settle(description).gen, dtype=description.stored)


def check_settings(pipeline: DiffusionPipeline, gen: GenSpec) -> None:
    """Refuse settings that a loaded pipeline cannot be run with.

    Raises:
        UsageError: It cannot.
    """
    check_generation(describe_loaded(pipeline), gen)


def is_bundled(pipeline: DiffusionPipeline) -> bool:
    """Whether a pipeline was loaded from the weights of this package."""
    source = pipeline.name_or_path
    folder = Path(os.environ.get(SHAPES_WEIGHTS) or weights_dir())
    return bool(source) and Path(str(source)).resolve() == folder.resolve()


def check_request(method: Method, options: dict[str, Any], family: str, bits: BitSpec) -> None:
    """Refuse what a method cannot make, before anything is computed.

    Args:
        method: The method.
        options: Options that differ from the defaults.
        family: Family of the denoiser.
        bits: Nominal widths.

    Raises:
        UsageError: An option is unknown, has another type, or lies out of its bounds.
        UnsupportedError: The method does not run on this family at this width.
    """
    resolve_options(method, options)
    refused = method.supports(family, bits)
    if method.unquantized or refused is not None:
        why = refused.reason if refused is not None else "it leaves the model as it is"
        raise UnsupportedError(
            f"method '{method.name}' makes no {bits} of a {family} model: {why}",
            "harness list methods shows what runs on what",
        )


def check_out(out: Path) -> Path:
    """The absolute folder of an artifact that is still to be made; nothing is made here.

    Raises:
        UsageError: Something lies there, or a file lies on the way.
    """
    target = out.expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"'{target}' holds something already", "give a folder that is not there")
    if not (above := _above(target)).is_dir():
        raise UsageError(f"'{target}' lies below the file '{above}'", "give another folder")
    return target


@contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """A scratch folder whose ``artifact`` becomes ``target`` where no error comes, and goes else.

    Args:
        target: Absolute path of a folder that does not exist or is empty.

    Raises:
        InfraError: The disk cannot be written there.
    """
    try:
        scratch = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=_above(target))
    except OSError as cause:
        raise InfraError(
            f"'{target}' cannot be written: {cause.strerror}", "give another folder"
        ) from cause
    with scratch as name:
        made = Path(name) / "artifact"
        made.mkdir()
        yield Path(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.rename(target)  # onto an empty folder too, and onto no other
        except OSError as cause:
            raise InfraError(
                f"'{target}' cannot be written: {cause.strerror}", "give another folder"
            ) from cause


def _above(target: Path) -> Path:
    """The nearest thing above a path that exists, on the same disk as what will be made there."""
    return next(folder for folder in target.parents if folder.exists())


def working_pipeline(pipeline: DiffusionPipeline, *, inplace: bool) -> DiffusionPipeline:
    """A pipeline to record with and to quantize; sampling with it leaves no trace in the other.

    Args:
        pipeline: The pipeline that was given.
        inplace: Whether it has the same denoiser, else a copy.
    """
    worked = copy.copy(pipeline)
    worked.register_modules(scheduler=copy.deepcopy(pipeline.scheduler))
    join_experts_(worked)
    if not inplace:
        replace_denoiser_(worked, copy.deepcopy(worked.transformer))
    worked.set_progress_bar_config(disable=True)
    denoiser: nn.Module = worked.transformer
    denoiser.eval().requires_grad_(False)
    return worked


def record_and_quantize(
    worked: DiffusionPipeline,
    method: Method,
    *,
    bits: BitSpec,
    options: dict[str, Any],
    family: str,
    gen: GenSpec,
    prompts: Sequence[Prompt],
    seed: int,
    scratch: Path,
    progress: Callable[[float, str], None],
) -> dict[str, Any]:
    """Record trajectories where the method wants them, quantize, verify.

    Args:
        worked: The pipeline whose denoiser is quantized.
        method: The method, which ``check_request`` has let through.
        bits: Nominal widths.
        options: Options that differ from the defaults.
        family: Family of the denoiser.
        gen: Generation settings.
        prompts: Calibration prompts; empty for a data-free method.
        seed: Calibration seed.
        scratch: Existing folder with an empty ``artifact`` in it; trajectories lie beside that.
        progress: Progress callback.

    Returns:
        The report that lies beside the artifact.

    Raises:
        UnsupportedError: The method found that it cannot quantize this model.
        HarnessError: The artifact does not hold what was declared.
    """
    out = scratch / "artifact"
    pool = scratch / "pool" if method.needs_calibration else None
    share = _RECORDING if pool is not None else 0.0
    if pool is not None:
        pool.mkdir()
        record_pool(
            worked, prompts, gen, seed=seed, folder=pool,
            progress=lambda fraction, text: progress(share * fraction, text),
        )  # fmt: skip
    quantize(
        worked, method, bits=bits, options=options, family=family, gen=gen, pool=pool, seed=seed,
        out=out, progress=lambda fraction, text: progress(share + (1 - share) * fraction, text),
    )  # fmt: skip
    blank = copy.copy(worked)
    replace_denoiser_(blank, _blank(worked.transformer, method))
    verify(blank, out, family=family, bits=bits, fresh=True)
    report: dict[str, Any] = json.loads((out / REPORT).read_text(encoding="utf-8"))
    return report


def _blank(transformer: Any, method: Method) -> nn.Module:
    """A denoiser of the same architecture without weights, to load an artifact into.

    Layers of a library may need the device they are made for; all others are read to the CPU, where
    there is room.
    """
    name = type(transformer).__name__
    experts = isinstance(transformer, WanExperts)
    config = model_config(transformer) if experts else transformer.config
    blank = empty_denoiser(name, config or {}, transformer.dtype)
    if not getattr(method, "libraries", ()):
        return blank
    nn.Module.to(blank, transformer.dtype)  # diffusers' own warns of parts that are not computed
    return blank.to_empty(device=transformer.device)


def keep_from_saving_(pipeline: DiffusionPipeline, artifact: Path) -> None:
    """Make a pipeline that was quantized in place say how it is saved, in place."""
    for holder in (pipeline, *parts_of(denoiser_of(pipeline)).values()):
        refuse_saving_(holder, artifact)
