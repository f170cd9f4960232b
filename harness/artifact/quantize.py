"""Quantize: run a method on a pipeline's denoiser and leave its artifact."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.artifact.merge import merged
from harness.artifact.stage import REPORT
from harness.bits import IDENTITY_WIDTH, BitSpec
from harness.measure.memory import peak_memory
from harness.method import Method, QuantContext, QuantReport, resolve_options
from harness.models.experts import join_experts_, steps_served
from harness.models.families import family_by_name
from harness.models.families.base import linear_at, target_linears
from harness.models.families.parts import parts_of, prefix
from harness.models.offload import computing_device
from harness.models.sample import denoise, denoiser_calls
from harness.models.trajectories import CalibrationPool
from harness.quant.layers.artifact import artifact_bytes, save_artifact
from harness.quant.layers.layers import compact, quantized_layers
from harness.quant.layers.low_rank import LowRank
from harness.quant.layers.policy import policies_of
from harness.quant.layers.switch import SwitchedLinear
from harness.store.kept import Kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import DiffusionPipeline
    from torch import nn

    from harness.models.text import Conditioning
    from harness.spec import GenSpec


EARLIER = "attempts that were ended"
"""Part of a calibration's seconds: what was finished before it went on."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """What the table says about size and width, measured on the artifact and on one denoising step.

    Attributes:
        target_layers: Linears that the family names as targets.
        target_parameters: Weights in them.
        total_parameters: All parameters of the denoiser.
        quantized_parameters: Weights in quantized linears.
        avg_w_bits: Mean width over all parameters of the denoiser, the unquantized counted as 16;
            what low-rank branches store counts on top.
        avg_a_bits: Mean activation width over the multiplications of the target linears.
        avg_a_bits_by_choice: The same with all switched linears held at each of their forms; empty
            without a step policy. A trajectory's mean is that over the forms of its steps.
        fp16_bytes: Bytes of the denoiser at 16 bits.
        artifact_bytes: Bytes on disk of the artifact.
    """

    target_layers: int
    target_parameters: int
    total_parameters: int
    quantized_parameters: int
    avg_w_bits: float
    avg_a_bits: float
    avg_a_bits_by_choice: tuple[float, ...]
    fp16_bytes: int
    artifact_bytes: int


def quantize(
    pipeline: DiffusionPipeline,
    method: Method,
    *,
    bits: BitSpec,
    options: dict[str, Any],
    family: str,
    gen: GenSpec,
    pool: Path | None,
    seed: int,
    out: Path,
    progress: Callable[[float, str], None],
    kept: Path | None = None,
    text: str | Conditioning = "",
) -> QuantReport:
    """Quantize the denoiser in place and write the artifact.

    Args:
        pipeline: Full-precision pipeline; its denoiser is replaced layer by layer.
        method: The method.
        bits: Nominal widths.
        options: Options that differ from the defaults.
        family: Family of the denoiser.
        gen: Generation settings, for the step that is counted.
        pool: Folder of the recorded trajectories; None for a method that needs none.
        seed: Calibration seed.
        out: Existing folder; gets ``artifact.json``, ``weights.safetensors``, ``report.json``,
            ``figures/``.
        progress: Progress callback.
        kept: Folder of what an attempt at the same artifact has finished; the calibration goes on
            from there and keeps there what it finishes. None keeps nothing.
        text: The empty prompt, or what the text encoders made of it.

    Returns:
        The method's report.
    """
    join_experts_(pipeline)
    transformer: nn.Module = pipeline.transformer
    facts = family_by_name(family)
    targets = target_linears(facts, transformer)
    sizes = {name: linear_at(transformer, name).weight.numel() for name in targets}
    total = sum(p.numel() for p in transformer.parameters())
    chosen = resolve_options(method, options)
    parts, reports = parts_of(transformer), {}
    recorded = CalibrationPool.open(pool) if pool is not None else None
    pools = {name: None if recorded is None else recorded.of_part(name) for name in parts}
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=out) as scratch:
        for turn, (name, part) in enumerate(parts.items()):
            ctx = QuantContext(
                bits=bits,
                options=chosen,
                family=facts,
                device=computing_device(pipeline),
                seed=seed,
                figures=_made(out / "figures" / name),
                progress=_share(progress, name, turn, len(parts)),
                pool=pools[name],
                data_free=not method.needs_calibration,
                scratch=_made(Path(scratch) / name),
                sampler=partial(unprompted_outputs, pipeline, gen, text=text, part=part),
                kept=None if kept is None else Kept(_made(kept / name)),
            )
            reports[name] = _run(method, part, ctx)
    report = merged(reports)
    about = {
        "model_class": type(transformer).__name__,
        "family": family,
        "method": {"name": method.name, "version": method.version},
        "options": dataclasses.asdict(chosen),
        "bits": str(bits),
        "calibration_seed": seed,
    }
    save_artifact(transformer, out, about)
    footprint = _footprint(pipeline, gen, text, report, sizes, total, artifact_bytes(out))
    document = {**dataclasses.asdict(report), "footprint": dataclasses.asdict(footprint)}
    (out / REPORT).write_text(json.dumps(_finite(document), indent=1, sort_keys=True) + "\n")
    return report


def _run(method: Method, part: nn.Module, ctx: QuantContext) -> QuantReport:
    """Quantize one network; its report has the peak, and the seconds of attempts before this."""
    with peak_memory(ctx.device) as peak, ctx.part("other"):
        report = method.quantize_(part, ctx)
    before = 0.0 if ctx.kept is None else ctx.kept.seconds_before
    return dataclasses.replace(
        report,
        peak_bytes=peak(),
        seconds=report.seconds + before,
        parts=ctx.seconds | ({EARLIER: before} if before else {}),
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _share(
    progress: Callable[[float, str], None], part: str, turn: int, turns: int
) -> Callable[[float, str], None]:
    """Progress of one of several networks as progress of all."""

    def report(fraction: float, text: str) -> None:
        progress((turn + fraction) / turns, f"{part}: {text}" if part else text)

    return report


def unprompted_outputs(
    pipeline: DiffusionPipeline,
    gen: GenSpec,
    seed: int,
    text: str | Conditioning = "",
    part: nn.Module | None = None,
) -> list[torch.Tensor]:
    """Sample the empty prompt and keep what the denoiser returns.

    Args:
        pipeline: The pipeline.
        gen: Settings.
        seed: Seed of the noise.
        text: The empty prompt, or what the text encoders made of it.
        part: Network of the denoiser whose steps are kept; None for all.

    Returns:
        One output a step, float32 on the CPU: of the first call at a timestep, the last entry of
        the batch, which is the conditional branch whether branches are stacked or called in turn.
    """
    outputs: list[torch.Tensor] = []
    last: list[float] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        del args
        timestep = float(kwargs["timestep"].float().max())
        if last != [timestep]:
            last[:] = [timestep]
            out = output[0] if isinstance(output, tuple) else output.sample
            outputs.append(out[-1].detach().float().cpu())

    watched = pipeline.transformer if part is None else part
    handle = watched.register_forward_hook(keep, with_kwargs=True)
    try:
        denoise(pipeline, text, gen, seed=seed)
    finally:
        handle.remove()
    return outputs


def _footprint(
    pipeline: DiffusionPipeline,
    gen: GenSpec,
    text: str | Conditioning,
    report: QuantReport,
    sizes: dict[str, int],
    total: int,
    disk: int,
) -> Footprint:
    layers = {layer.name: layer for layer in report.layers}
    quantized = sum(sizes[name] for name in layers)
    stored = sum(sizes[name] * layer.w_bits for name, layer in layers.items())
    stored += branch_bits(pipeline.transformer)
    work = _multiplications(pipeline, gen, text, list(sizes), sizes)
    widths = {n: layers[n].a_bits if n in layers else float(IDENTITY_WIDTH) for n in sizes}

    def mean_a_bits(widths: dict[str, float]) -> float:
        return sum(work[n] * widths[n] for n in sizes) / sum(work.values())

    return Footprint(
        target_layers=len(sizes),
        target_parameters=sum(sizes.values()),
        total_parameters=total,
        quantized_parameters=quantized,
        avg_w_bits=(stored + IDENTITY_WIDTH * (total - quantized)) / total,
        avg_a_bits=mean_a_bits(widths),
        avg_a_bits_by_choice=tuple(
            mean_a_bits(widths | held) for held in _a_bits_by_choice(pipeline.transformer)
        ),
        fp16_bytes=2 * total,
        artifact_bytes=disk,
    )


def branch_bits(transformer: nn.Module) -> int:
    """Bits that low-rank branches store; a projection that linears share counts once."""
    held = {
        value.data_ptr(): 8 * compact(value).nbytes
        for branch in transformer.modules()
        if isinstance(branch, LowRank)
        for value in branch.buffers()
    }
    return sum(held.values())


def _a_bits_by_choice(transformer: nn.Module) -> list[dict[str, float]]:
    """Activation widths of the switched linears at each of their forms, by qualified name."""
    switched = {
        name: layer
        for name, layer in quantized_layers(transformer).items()
        if isinstance(layer, SwitchedLinear)
    }
    choices = max((len(layer.choices) for layer in switched.values()), default=0)
    return [
        {name: layer.forms[i].report(name).a_bits for name, layer in switched.items()}
        for i in range(choices)
    ]


def _multiplications(
    pipeline: DiffusionPipeline,
    gen: GenSpec,
    text: str | Conditioning,
    names: list[str],
    sizes: dict[str, int],
) -> dict[str, int]:
    """Multiplications of every target linear in a trajectory, up to a factor that all share.

    The calls of the first step stand for those of all: the networks of a denoiser get the same
    shapes.
    """
    rows: dict[str, int] = dict.fromkeys(names, 0)
    transformer, calls = pipeline.transformer, denoiser_calls(pipeline, gen, text)
    served = steps_served(pipeline)
    handles = []
    for name in names:

        def count(module: nn.Module, args: tuple[torch.Tensor, ...], name: str = name) -> None:
            rows[name] += args[0].numel() // args[0].shape[-1]

        handles.append(transformer.get_submodule(name).register_forward_pre_hook(count))
    try:
        with torch.no_grad():
            for part in parts_of(transformer).values():
                for arguments in calls:
                    part(**arguments)
    finally:
        for handle in handles:
            handle.remove()
        for policy in policies_of(transformer).values():
            policy.begin()  # a step that counted is none of a trajectory
    steps = {n: served[part] for part in served for n in names if n.startswith(prefix(part))}
    return {name: rows[name] * sizes[name] * steps[name] for name in names}


def _finite(value: Any) -> Any:
    """Replace what JSON cannot hold by None."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
