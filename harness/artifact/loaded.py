"""Quantizing a pipeline that somebody else has loaded: what is checked, recorded and verified."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from harness.artifact.quantize import quantize
from harness.artifact.stage import REPORT
from harness.artifact.verify import verify
from harness.errors import UnsupportedError, UsageError
from harness.models.families import family_name_of
from harness.models.trajectories import record_pool
from harness.quant.layers.layers import quantized_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from diffusers import DiffusionPipeline

    from harness.bits import BitSpec
    from harness.method import Method
    from harness.spec import GenSpec, Prompt

_RECORDING = 0.1  # share of the progress that recording trajectories takes


def open_family(pipeline: DiffusionPipeline) -> str:
    """Family of a loaded pipeline's denoiser.

    Raises:
        UsageError: It has none, or one that is quantized already.
        HarnessError: The denoiser belongs to no supported family.
    """
    transformer = getattr(pipeline, "transformer", None)
    if transformer is None:
        raise UsageError(
            f"a {type(pipeline).__name__} has no transformer to quantize",
            "give a loaded text-to-video pipeline of diffusers",
        )
    if quantized_layers(transformer):
        raise UsageError(
            "the denoiser of this pipeline is quantized already", "load the pipeline again"
        )
    return family_name_of(type(transformer).__name__)


def check_out(out: Path) -> Path:
    """The absolute folder of an artifact that is still to be made.

    Raises:
        UsageError: Something lies there.
    """
    target = out.expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"'{target}' holds something already", "give a folder that is not there")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def record_and_quantize(
    pipeline: DiffusionPipeline,
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
    out: Path,
    progress: Callable[[float, str], None],
) -> dict[str, Any]:
    """Record trajectories where the method wants them, quantize, verify.

    Args:
        pipeline: The pipeline, which verification reads where it is still in full precision.
        worked: The pipeline whose denoiser is quantized; may be ``pipeline`` itself.
        method: The method.
        bits: Nominal widths.
        options: Options that differ from the defaults.
        family: Family of the denoiser.
        gen: Generation settings.
        prompts: Calibration prompts; empty for a data-free method.
        seed: Calibration seed.
        scratch: Existing folder for the trajectories.
        out: Existing folder of the artifact.
        progress: Progress callback.

    Returns:
        The report that lies beside the artifact.

    Raises:
        UnsupportedError: The method does not run on this family at this width.
        HarnessError: The artifact does not hold what was declared.
    """
    refused = None if method.unquantized else method.supports(family, bits)
    if method.unquantized or refused is not None:
        why = refused.reason if refused is not None else "it leaves the model as it is"
        raise UnsupportedError(
            f"method '{method.name}' makes no {bits} of a {family} model: {why}",
            "harness list methods shows what runs on what",
        )
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
    if worked is not pipeline:  # in place there is no full-precision denoiser left to load it into
        fresh = copy.copy(pipeline)
        fresh.register_modules(transformer=copy.deepcopy(pipeline.transformer))
        verify(fresh, out, family=family, bits=bits, fresh=True)
    report: dict[str, Any] = json.loads((out / REPORT).read_text(encoding="utf-8"))
    return report
