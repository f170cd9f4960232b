"""What an artifact takes in memory: resident bytes a weight, and the peak of loading it.

    python -m harness.measure.packed FOLDER

prints one line of JSON. The peak is that of a process which does nothing else.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.quant.layers.stored import read_manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedFacts:
    """What a quantized denoiser takes.

    Attributes:
        parameters: All parameters of the denoiser, quantized and kept.
        weights: Weights in quantized linears.
        bytes_per_weight: Resident bytes of the quantized linears for each of their weights.
        resident_bytes: Resident bytes of the whole denoiser.
        peak_bytes: Most that the process grew while it loaded.
    """

    parameters: int
    weights: int
    bytes_per_weight: float
    resident_bytes: int
    peak_bytes: int

    @property
    def peak_share(self) -> float:
        """Peak over the bytes of the denoiser at 16 bits."""
        return self.peak_bytes / (2 * self.parameters)


def packed_facts(folder: Path) -> PackedFacts:
    """Load an artifact in a process of its own and measure.

    Args:
        folder: An artifact that holds the config of its model.

    Raises:
        HarnessError: It cannot be loaded.
    """
    read_manifest(folder)  # refuses what is no artifact, before a process is started
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise HarnessError(
            f"artifact '{folder}' could not be measured: {last}", "run `harness verify` on it"
        )
    return PackedFacts(**json.loads(done.stdout.splitlines()[-1]))


def measured(folder: Path) -> PackedFacts:
    """The same in this process; what it already has is not counted."""
    import accelerate  # noqa: F401
    import diffusers

    from harness.measure.memory import peak_memory, resident
    from harness.quant.layers.artifact import open_quantized_denoiser
    from harness.quant.layers.footprint import bytes_per_weight, resident_bytes
    from harness.quant.layers.layers import quantized_layers

    # what is imported with the class is no part of the peak
    getattr(diffusers, str(read_manifest(folder).get("model_class", "")), None)
    gc.collect()
    before = resident()
    with peak_memory("cpu") as peak:
        transformer = open_quantized_denoiser(folder)
        most = peak()
    layers = quantized_layers(transformer)
    weights = sum(layer.in_features * layer.out_features for layer in layers.values())
    inside = tuple(f"{name}." for name in layers)
    kept = [v.numel() for n, v in transformer.named_parameters() if not n.startswith(inside)]
    return PackedFacts(
        parameters=weights + sum(kept),
        weights=weights,
        bytes_per_weight=bytes_per_weight(transformer),
        resident_bytes=resident_bytes(transformer),
        peak_bytes=max(0, most - before),
    )


if __name__ == "__main__":
    print(json.dumps(asdict(measured(Path(sys.argv[1])))))
