"""Verify: an artifact holds what its method declared, on disk, without the method."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from harness.artifact.stage import REPORT
from harness.bits import IDENTITY_WIDTH, BitSpec
from harness.errors import HarnessError
from harness.models.families import family_by_name
from harness.models.families.base import InputGroup, target_linears
from harness.quant.layers.artifact import load_artifact_
from harness.quant.layers.grid import decode, encode, expand
from harness.quant.layers.layers import QuantizedLayer, quantized_layers
from harness.quant.layers.library import LibraryLinear
from harness.quant.layers.linear import QuantLinear
from harness.quant.layers.policy import policies_of
from harness.quant.layers.switch import SwitchedLinear

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import DiffusionPipeline

    from harness.quant.layers.activation import ActivationSpec


def verify(
    pipeline: DiffusionPipeline, artifact: Path, *, family: str, bits: BitSpec, fresh: bool
) -> None:
    """Load an artifact into a full-precision pipeline and check every quantized layer.

    Args:
        pipeline: Full-precision pipeline; its denoiser becomes the quantized one.
        artifact: Artifact folder.
        family: Family of the denoiser.
        bits: Nominal widths of the row.
        fresh: The report lies beside the artifact and is compared with it.

    Raises:
        HarnessError: A target is missing or foreign, quantized at other widths than declared, or
            changes when it is rounded again.
    """
    transformer: nn.Module = pipeline.transformer
    targets = target_linears(family_by_name(family), transformer)
    manifest = load_artifact_(transformer, artifact)
    modulation = manifest.get("options", {}).get("modulation") != "fp"
    layers = quantized_layers(transformer)
    problems = [*_coverage(layers, targets, modulation)]
    switched = any(isinstance(layer, SwitchedLinear) for layer in layers.values())
    if switched != bool(policies_of(transformer)):
        problems.append("switched layers and a step policy, one without the other")
    for name, layer in layers.items():
        problems += [f"{name}: {what}" for what in _layer_problems(layer)]
    if fresh:
        problems += _against_report(layers, targets, artifact, bits)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise HarnessError(
            f"artifact '{artifact}' does not hold what was declared: {problems[0]}{more}",
            "the method that made it has a defect; `harness show artifact` lists every layer",
        )


def _coverage(
    layers: dict[str, QuantizedLayer], targets: dict[str, InputGroup], modulation: bool
) -> list[str]:
    """Targets missing or foreign; modulation linears may be left out only as an option."""
    foreign = sorted(set(layers) - set(targets))
    missing = sorted(
        n for n in set(targets) - set(layers) if modulation or not targets[n].modulation
    )
    return [
        *(f"{n} is quantized but is no target" for n in foreign),
        *(f"{n} is a target but is not quantized" for n in missing),
    ]


def _layer_problems(layer: QuantizedLayer) -> list[str]:
    """What is wrong with a layer."""
    if isinstance(layer, LibraryLinear):
        return layer.problems()
    if isinstance(layer, SwitchedLinear):
        return [problem for form in layer.forms for problem in _linear_problems(form)]
    return _linear_problems(layer) if isinstance(layer, QuantLinear) else []


def _linear_problems(layer: QuantLinear) -> list[str]:
    grid, spec = layer.grid, layer.weight_spec
    found = _activation_problems(layer.activation_spec)
    if grid is None:
        finite = bool(torch.isfinite(layer.codes).all())
        return found if finite else [*found, "a weight is not finite"]
    codes = layer.codes.float()
    if not bool(torch.isfinite(grid.scale).all()):
        found.append("a step is not finite")
    wide = expand(grid, spec.group)
    again = encode(decode(codes, wide), wide, spec.bits)
    if not torch.equal(again, codes):
        found.append("rounding it again changes its codes")
    return found


def _activation_problems(spec: ActivationSpec) -> list[str]:
    """A range that is no range: a static one upside down, a clip that shows nothing or widens."""
    if spec.bits == IDENTITY_WIDTH:
        return []
    if spec.static_low is not None and spec.static_high is not None:
        if -math.inf < spec.static_low < spec.static_high < math.inf:
            return []
        return [f"the activation range {spec.static_low}..{spec.static_high} is empty"]
    factors = (spec.clip_low, spec.clip_high)
    return [] if all(0 < f <= 1 for f in factors) else [f"activation clip factors {factors}"]


def _against_report(
    layers: dict[str, QuantizedLayer], targets: dict[str, InputGroup], artifact: Path, bits: BitSpec
) -> list[str]:
    report = json.loads((artifact / REPORT).read_text())
    declared = {layer["name"]: layer for layer in report["layers"]}
    found = [f"{n} is not in the report" for n in sorted(set(layers) - set(declared))]
    found += [f"{n} is in the report only" for n in sorted(set(declared) - set(layers))]
    for name in sorted(set(layers) & set(declared)):
        said, (widths_w, widths_a) = declared[name], _widths(layers[name], name)
        if not min(widths_w) <= said["w_bits"] <= max(widths_w):
            found.append(f"{name} is stored at w{_any(widths_w)}, reported w{said['w_bits']:g}")
        if not min(widths_a) <= said["a_bits"] <= max(widths_a):
            found.append(f"{name} rounds activations to {_any(widths_a)} bits")
        if report.get("mixed"):
            continue
        modulation = name in targets and targets[name].modulation
        nominal = IDENTITY_WIDTH if modulation else bits.a
        if said["w_bits"] != bits.w or said["a_bits"] != nominal:
            found.append(f"{name} is w{said['w_bits']}a{said['a_bits']} in a row that says {bits}")
    return found


def _widths(layer: QuantizedLayer, name: str) -> tuple[set[float], set[float]]:
    """Weight and activation widths that a layer can have; one each unless it is switched."""
    forms = layer.forms if isinstance(layer, SwitchedLinear) else [layer]
    reports = [form.report(name) for form in forms]
    return {r.w_bits for r in reports}, {r.a_bits for r in reports}


def _any(widths: set[float]) -> str:
    return " or ".join(f"{width:g}" for width in sorted(widths))
