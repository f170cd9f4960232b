"""The artifact stage: what a quantized model is made from, and what is read of it.

Its keys name what decides the codes: the model, the method with the options that are on, the
calibration, and the sources of method, toolkit, family and sampler. Importing this module needs no
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.models.tiling import before_decoding
from harness.spec import COST, FP, Metric, Value
from harness.store.keys import Keyed, model_identity
from harness.store.provenance import package_version
from harness.store.sources import reach, sources_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from harness.spec import GenSpec, ModelSpec, PromptSuite
    from harness.store.store import Entry

REPORT = "report.json"
TOOLKIT = ("harness.quant", "harness.method", "harness.bits")
_WORK = "harness.artifact.quantize"
_FAMILIES = "harness.models.families"
_SHARED = ("base", "dual_stream", "fold", "fold_targets", "latent")
_FAMILY_PARTS = tuple(f"{_FAMILIES}.{name}" for name in _SHARED)
SAMPLER = (
    "harness.models.sample",
    "harness.models.text",
    "harness.models.scheduler",
    "harness.models.load",
    "harness.models.experts",
    "harness.models.outliers",
)
"""What decides how a pipeline is opened and sampled."""

RECORDER = ("harness.models.trajectories", "harness.models.block_input")

METRICS = (
    Metric(
        name="avg_w_bits", unit="bits", better="lower", title="W\nbits", block=COST, whole=True,
        headline=True,
    ),
    Metric(
        name="avg_a_bits", unit="bits", better="lower", title="A\nbits", block=COST, whole=True,
        headline=True,
    ),
    Metric(
        name="layers_quantized", unit="layers", title="layers\nquantized", block=COST, whole=True
    ),
    Metric(
        name="layers_target", unit="layers", title="layers\ntarget", block=COST, whole=True,
        shown=False,
    ),
    Metric(
        name="weights_quantized", unit="ratio", title="weights\nquantized", block=COST, whole=True,
        shown=False,
    ),
    Metric(
        name="artifact_bytes", unit="bytes", better="lower", title="size\nMB", block=COST,
        whole=True, scale=1e-6, headline=True,
    ),
    Metric(
        name="compression", unit="ratio", better="higher", title="vs\n16 bit", block=COST,
        whole=True, suffix="x", headline=True,
    ),
    Metric(
        name="calibration_s", unit="s", better="lower", title="calib.\ns", block=COST, whole=True,
        digits=1, headline=True,
    ),
    Metric(
        name="calibration_forwards", unit="forwards", title="calib.\nfwd", block=COST, whole=True,
        digits=0,
    ),
    Metric(
        name="calibration_samples", unit="samples", title="calib.\nsamples", block=COST,
        whole=True, digits=0, shown=False,
    ),
)  # fmt: skip


def pool_key(
    *,
    model: ModelSpec,
    gen: GenSpec,
    suite: PromptSuite,
    seed: int,
    cohort: Mapping[str, Any],
) -> Keyed:
    """Key of a pool of recorded calibration trajectories."""
    return Keyed.of(
        "pool",
        {
            "model": model_identity(model),
            "gen": before_decoding(gen),
            "suite": suite.digest,
            "seed": seed,
            "cohort": cohort,
            "sources": {"sampler": sampler_digest(model.family), "recorder": _recorder_digest()},
        },
    )


def artifact_key(
    *,
    model: ModelSpec,
    gen: GenSpec,
    method: str,
    module: str,
    version: int,
    options: Mapping[str, Any],
    libraries: Sequence[str],
    bits: str,
    calibration: PromptSuite | None,
    seed: int,
) -> Keyed:
    """Key of a quantized model.

    Args:
        model: The model.
        gen: Its generation settings, at which trajectories are recorded and steps counted.
        method: Name of the method.
        module: Where it is implemented.
        version: The method's own.
        options: Options that are on (``harness.options.spelled``).
        libraries: Distributions whose code quantizes and runs the layers of a back end.
        bits: Nominal widths.
        calibration: Prompts of the recorded trajectories; None without calibration.
        seed: Calibration seed.
    """
    told = None
    if calibration is not None:
        told = {"suite": calibration.digest, "prompts": len(calibration.prompts)}
    return Keyed.of(
        "artifact",
        {
            "model": model_identity(model),
            "gen": before_decoding(gen),
            "method": method,
            "version": version,
            "options": dict(options),
            "libraries": {name: package_version(name) for name in libraries},
            "bits": bits,
            "calibration": told,
            "seed": seed,
            "sources": artifact_sources(module, model.family, calibrated=told is not None),
        },
    )


def reference_key(model: ModelSpec, gen: GenSpec, method: str) -> Keyed:
    """Key that stands for the unquantized model in the keys of its clips."""
    return Keyed.of(
        "artifact",
        {
            "model": model_identity(model),
            "gen": before_decoding(gen),
            "method": method,
            "bits": FP,
        },
    )


def artifact_sources(module: str, family: str, *, calibrated: bool) -> dict[str, str]:
    """Digests of the sources that decide an artifact, by whose they are.

    Args:
        module: Where the method is implemented.
        family: Family of the model.
        calibrated: Whether trajectories are recorded for it.
    """
    own = module.partition(".")[0]
    reached = reach([module, _WORK], (own, *TOOLKIT, _WORK), skip=(_FAMILIES,))
    mine = [name for name in reached if name.partition(".")[0] == own]
    found = {
        "method": sources_digest(mine),
        "toolkit": sources_digest(set(reached) - set(mine)),
        "family": sources_digest([*_FAMILY_PARTS, f"{_FAMILIES}.{family}"]),
        "sampler": sampler_digest(family),
    }
    return found | ({"recorder": _recorder_digest()} if calibrated else {})


def sampler_digest(family: str) -> str:
    """Digest of the sources that decide how a family's pipeline is opened and sampled."""
    return sources_digest([*SAMPLER, f"{_FAMILIES}.{family}"])


def _recorder_digest() -> str:
    return sources_digest(RECORDER)


def report_of(entry: Entry | None) -> dict[str, Any] | None:
    """The method's report and the footprint beside it; None where there is no artifact."""
    if entry is None:
        return None
    found: dict[str, Any] = entry.json(REPORT)
    return found


def widths_of_forms(report: Mapping[str, Any] | None) -> tuple[float, ...]:
    """Mean activation bits of each form of a row's step policy; empty without one."""
    return tuple((report or {}).get("footprint", {}).get("avg_a_bits_by_choice") or ())


def artifact_values(entry: Entry | None, taken: Mapping[str, float]) -> Iterator[Value]:
    """What is known of an artifact.

    Args:
        entry: The artifact, None where there is none.
        taken: Mean activation bits over the sampling steps of the evaluation clips, by prompt:
            what the step policy did on them, not when the method was calibrated. Empty without.
    """
    report = report_of(entry)
    if entry is None or report is None:
        return
    found = report_values(report)
    details = {}
    if taken:
        found["avg_a_bits"] = sum(taken.values()) / len(taken)
        details["avg_a_bits"] = "over the sampling steps of the evaluation clips"
    for metric, value in found.items():
        yield Value(
            metric=metric, value=value, key=entry.key, at=entry.manifest["at"],
            detail=details.get(metric, ""),
        )  # fmt: skip


def report_values(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a quantization report, its footprint included."""
    footprint = report["footprint"]
    return {
        "artifact_bytes": footprint["artifact_bytes"],
        "compression": footprint["fp16_bytes"] / footprint["artifact_bytes"],
        "avg_w_bits": footprint["avg_w_bits"],
        "avg_a_bits": footprint["avg_a_bits"],
        "layers_quantized": len(report["layers"]),
        "layers_target": footprint["target_layers"],
        "weights_quantized": footprint["quantized_parameters"] / footprint["target_parameters"],
        "calibration_s": report["seconds"],
        "calibration_forwards": report["calibration_forwards"],
        "calibration_samples": report["calibration_samples"],
    }
