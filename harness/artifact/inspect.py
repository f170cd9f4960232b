"""Inspect: what an artifact holds, from the artifact alone, without model and without method.

The widths that a row is called by say little about an artifact in which some layers keep 16 bits
and a step policy switches others. What is counted here is what lies in the files, and on sampled
clips what their steps really used.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.artifact.stage import REPORT
from harness.bits import IDENTITY_WIDTH
from harness.generate.generate import FACTS_FILE, STEPS_BY_CHOICE
from harness.quant.layers.linear import QuantLinear
from harness.quant.layers.stored import (
    artifact_bytes,
    open_artifact,
    read_manifest,
    stored_layers,
)
from harness.quant.layers.switch import SwitchedLinear
from harness.store.manifests import sound_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.quant.layers.layers import QuantizedLayer
    from harness.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One quantized form of a linear; a linear that a step policy switches has several.

    Attributes:
        w_bits: Weight bits stored.
        a_bits: Activation bits.
        levels: Distinct weight codes that occur; None where a library keeps the codes to itself
            or the weight is not rounded.
        group: Input channels that share a weight step, 0 for one step for each output channel.
        symmetric: Whether the weight grid has no zero point.
        transform: Input transforms and branch, joined by ``+``.
        activation: How the input is rounded.
    """

    w_bits: float
    a_bits: float
    levels: int | None
    group: int
    symmetric: bool
    transform: str
    activation: str


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectedLayer:
    """A linear of the artifact.

    Attributes:
        name: Qualified module name.
        kind: ``linear``, ``switched`` or ``library``.
        shape: ``(out_features, in_features)``.
        error: Relative output error on calibration inputs, as the method measured it when it made
            the artifact; None where it did not.
        forms: Its forms, one where nothing switches.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    error: float | None
    forms: tuple[Form, ...]

    @property
    def parameters(self) -> int:
        """Weights."""
        return self.shape[0] * self.shape[1]

    def bits(self, side: str, shares: Sequence[float]) -> float:
        """Width of a side (``w_bits``, ``a_bits``), forms weighted by their share of the steps."""
        widths = [float(getattr(form, side)) for form in self.forms]
        if len(widths) == 1:
            return widths[0]
        used = list(shares) if len(shares) == len(widths) else [1 / len(widths)] * len(widths)
        return sum(s * w for s, w in zip(used, widths, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What an artifact holds.

    Attributes:
        nominal: The widths the row is called by; empty where the artifact does not say.
        method: Name and version of the method; empty likewise.
        layers: Every quantized linear.
        total_parameters: Parameters of the denoiser, quantized and kept.
        w_bits_quantized: Mean weight bits over the weights of the quantized linears.
        w_bits_all: Mean over all parameters of the denoiser, those that stay counted as 16.
        stored_bits: Bits on disk for each parameter: steps, zero points, transforms, branches and
            the manifest counted.
        a_bits_weights: Mean activation bits, each linear weighted by its weights.
        a_bits_work: The same weighted by multiplications, as reported when the artifact was made;
            None without report.
        a_bits_clips: The same over the sampling steps of the clips; None without clips or policy.
        policy: Kind and facts of the step policy; None without.
        mixed: Why layers or steps differ from the nominal label, in the method's words.
        histogram: Steps of the clips by form, summed.
        clips: Clips that were counted.
        bytes: Bytes on disk.
        kept: Tensors that stay in high precision.
        parts: Seconds of the calibration by part, as reported when the artifact was made.
    """

    nominal: str
    method: str
    layers: tuple[InspectedLayer, ...]
    total_parameters: int
    w_bits_quantized: float
    w_bits_all: float
    stored_bits: float
    a_bits_weights: float
    a_bits_work: float | None
    a_bits_clips: float | None
    policy: dict[str, Any] | None
    mixed: str
    histogram: tuple[int, ...]
    clips: int
    bytes: int
    kept: int
    parts: dict[str, float] = field(default_factory=dict)


def inspect(folder: Path, traces: Sequence[Sequence[int]] = ()) -> Inspection:
    """Read an artifact.

    Args:
        folder: Artifact folder; ``report.json`` beside it is used where it lies there.
        traces: For each clip made with the artifact the form chosen at each step.

    Raises:
        HarnessError: The folder is no artifact, or needs a library that is not here.
    """
    manifest = read_manifest(folder)
    report = _report(folder)
    errors = {layer["name"]: layer.get("error") for layer in report.get("layers", ())}
    layers, biases = [], 0
    for name, layer in stored_layers(folder):
        layers.append(_layer(name, layer, errors.get(name)))
        biases += _bias(layer)
    total = sum(layer.parameters for layer in layers) + biases + _kept(folder, manifest)
    histogram = _histogram(layers, traces)
    shares = [count / sum(histogram) for count in histogram] if sum(histogram) else []
    weights = sum(layer.parameters for layer in layers)
    stored = sum(layer.parameters * layer.bits("w_bits", shares) for layer in layers)
    method = manifest.get("method", "")
    known = isinstance(method, dict)
    size = artifact_bytes(folder)
    return Inspection(
        nominal=str(manifest.get("bits", "")),
        method=f"{method['name']}, version {method['version']}" if known else str(method),
        layers=tuple(layers),
        total_parameters=total,
        w_bits_quantized=stored / max(1, weights),
        w_bits_all=(stored + IDENTITY_WIDTH * (total - weights)) / max(1, total),
        stored_bits=8 * size / max(1, total),
        a_bits_weights=sum(x.parameters * x.bits("a_bits", shares) for x in layers)
        / max(1, weights),
        a_bits_work=report.get("footprint", {}).get("avg_a_bits"),
        a_bits_clips=_clip_bits(report, histogram),
        policy=manifest.get("step_policy"),
        mixed=str(report.get("mixed") or ""),
        histogram=histogram,
        clips=len(traces),
        bytes=size,
        kept=len(manifest["kept_dtypes"]),
        parts={str(k): float(v) for k, v in (report.get("parts") or {}).items()},
    )


def clip_traces(store: Store, artifact_key: str) -> list[list[int]]:
    """The forms chosen at each step of every clip in the store that was made with an artifact."""
    found = []
    for kind, key, folder in store.entries():
        manifest = sound_manifest(kind, key, folder) if kind == "clip" else None
        if manifest is not None and manifest["inputs"].get("quant") == artifact_key:
            facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
            if facts.get(STEPS_BY_CHOICE):
                found.append([int(form) for form in facts[STEPS_BY_CHOICE]])
    return found


def _layer(name: str, layer: QuantizedLayer, error: float | None) -> InspectedLayer:
    forms = layer.forms if isinstance(layer, SwitchedLinear) else [layer]
    return InspectedLayer(
        name=name,
        kind=layer.kind,
        shape=(layer.out_features, layer.in_features),
        error=error,
        forms=tuple(_form(form) for form in forms),
    )


def _form(layer: QuantizedLayer) -> Form:
    facts = layer.report("")
    levels, activation = None, _plain_activation(facts.a_bits)
    if isinstance(layer, QuantLinear):
        activation = layer.activation_spec.label
        if layer.grid is not None:
            levels = int(layer.codes.unique().numel())
    return Form(
        w_bits=facts.w_bits,
        a_bits=facts.a_bits,
        levels=levels,
        group=facts.group,
        symmetric=facts.symmetric,
        transform=facts.transform,
        activation=activation,
    )


def _plain_activation(a_bits: float) -> str:
    return "16 bit" if a_bits == IDENTITY_WIDTH else "by the library"


def _bias(layer: QuantizedLayer) -> int:
    """Parameters of the bias of the linear that stood here."""
    first = layer.forms[0] if isinstance(layer, SwitchedLinear) else layer
    bias = getattr(getattr(first, "inner", first), "bias", None)
    return 0 if bias is None else int(bias.numel())


def _kept(folder: Path, manifest: dict[str, Any]) -> int:
    """Numbers in the tensors that stay, from the headers."""
    _, tensors = open_artifact(folder)
    return sum(math.prod(tensors.place(name).shape) for name in manifest["kept_dtypes"])


def _report(folder: Path) -> dict[str, Any]:
    path = folder / REPORT
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _histogram(
    layers: Sequence[InspectedLayer], traces: Sequence[Sequence[int]]
) -> tuple[int, ...]:
    forms = max((len(layer.forms) for layer in layers), default=1)
    if forms == 1:
        return ()
    steps = [form for trace in traces for form in trace]
    return tuple(steps.count(form) for form in range(forms))


def _clip_bits(report: dict[str, Any], histogram: Sequence[int]) -> float | None:
    widths = report.get("footprint", {}).get("avg_a_bits_by_choice") or []
    if not sum(histogram) or len(widths) != len(histogram):
        return None
    work = sum(n * float(w) for n, w in zip(histogram, widths, strict=True))
    return work / sum(histogram)
