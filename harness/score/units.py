"""What metrics are measured in, and which direction is better."""

from __future__ import annotations

from harness.score import vbench_records as judged
from harness.score.scorers import CLIP_METRICS, FVD_METRIC

UNITS = {
    "psnr_db": ("dB", "higher"),
    "ssim": ("ratio", "higher"),
    "latent_cosine": ("ratio", "higher"),
    "latent_error": ("ratio", "lower"),
    "lpips": ("ratio", "lower"),
    "artifact_bytes": ("bytes", "lower"),
    "compression": ("ratio", "higher"),
    "avg_w_bits": ("bits", "lower"),
    "avg_a_bits": ("bits", "lower"),
    "clip_a_bits": ("bits", "none"),
    "layers_quantized": ("layers", "none"),
    "layers_target": ("layers", "none"),
    "weights_quantized": ("ratio", "none"),
    "calibration_s": ("s", "lower"),
    "calibration_forwards": ("forwards", "none"),
    "calibration_samples": ("samples", "none"),
    "peak_bytes": ("bytes", "lower"),
    "step_latency_s": ("s", "lower"),
    "step_latency_iqr_s": ("s", "none"),
    "clip_latency_s": ("s", "lower"),
    "clip_latency_iqr_s": ("s", "none"),
    # Of a frozen clip it is 1, whatever is on it.
    **{m: ("cosine", "none" if m.startswith("clip_temp") else "higher") for m in CLIP_METRICS},
    FVD_METRIC: ("distance", "lower"),
}
_PREFIXES = {
    "oracle_": ("bool", "higher"),
    "margin_": ("margin", "higher"),
    "steps_form_": ("steps", "none"),
}


def unit(metric: str) -> tuple[str, str]:
    """Unit of a metric and which direction is better."""
    for prefix, answer in _PREFIXES.items():
        if metric.startswith(prefix):
            return answer
    return judged.unit(metric) or UNITS[metric]
