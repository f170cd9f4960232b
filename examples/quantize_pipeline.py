"""Quantize a loaded pipeline, load the result into another one, compare a clip of both.

Takes half a minute on two cores. Any text-to-video pipeline of a supported family will do in place
of the bundled model; `harness list models` knows some.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

import harness

PROMPT = "a green circle moving right on a black background"


def clip(pipeline) -> np.ndarray:
    """Sample the prompt: values in 0..1, ``[frames, height, width, 3]``."""
    noise = torch.Generator().manual_seed(0)
    made = pipeline(
        PROMPT, num_inference_steps=10, guidance_scale=2.0, generator=noise, output_type="np",
        max_sequence_length=24,  # of the bundled model; CogVideoX has 226
    )  # fmt: skip
    return made.frames[0]


def main() -> None:
    """Quantize, save, load, sample, compare."""
    pipeline = harness.load_pipeline("shapes")
    with tempfile.TemporaryDirectory() as folder:
        # The pipeline stays as it is. A calibrated method records trajectories of its own.
        artifact = harness.quantize(
            pipeline, "gptq", bits="w4a8", out=Path(folder) / "artifact",
            calibration_prompts=2, options={"samples": 4}, gen={"steps": 4},
        )  # fmt: skip
        # What loads it needs the original model and the artifact, not the method.
        quantized = harness.load_quantized(harness.load_pipeline("shapes"), artifact.folder)
    size = artifact.report["footprint"]
    print(f"{size['artifact_bytes'] / 1e6:.1f} MB instead of {size['fp16_bytes'] / 1e6:.1f} MB")
    error = np.square(clip(pipeline) - clip(quantized)).mean()
    print(f"PSNR {-10 * np.log10(error):.1f} dB")


if __name__ == "__main__":
    main()
