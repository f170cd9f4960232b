"""Which layers does quantization hurt most? The report of an artifact as a DataFrame.

Takes half a minute on two cores.
"""

import tempfile
from pathlib import Path

import pandas as pd

import harness

PROMPTS = [
    "a pink circle moving down on a black background",
    "a purple square moving left on a white background",
]


def main() -> None:
    """Quantize with calibration on prompts of one's own, list the worst layers."""
    pipeline = harness.load_pipeline("shapes")
    with tempfile.TemporaryDirectory() as folder:
        artifact = harness.quantize(
            pipeline, "gptq", bits="w4a4", out=Path(folder) / "artifact",
            prompts=PROMPTS, gen={"steps": 4}, options={"samples": 4, "timesteps": 4}, inplace=True,
        )  # fmt: skip
    # `error` is that of the layer's output by the rounding of its weight, relative and squared.
    layers = pd.DataFrame(artifact.report["layers"]).set_index("name")
    print(layers.nlargest(5, "error")[["w_bits", "a_bits", "transform", "error"]])
    print(f"all {len(layers)} layers: {layers.error.mean():.5f} on average")


if __name__ == "__main__":
    main()
