from __future__ import annotations

from pathlib import Path

import pytest

from harness.score.vbench_judge import VBenchJudge
from harness.store.provenance import Device

CPU, CUDA = Device(id="cpu", name="some processor"), Device(id="cuda", name="some card")


def judge(device: Device, precision: str) -> VBenchJudge:
    return VBenchJudge(
        python=Path("python"),
        versions={"vbench": "0.1.5"},
        weights=Path("weights"),
        digests={
            "background_consistency": {"clip-vit-b-32": "ab" * 32},
            "imaging_quality": {"musiq-spaq": "cd" * 32},
        },
        device=device,
        scorer="shared",
        precision=precision,
        batch=1,
        threads=1,
    )


@pytest.mark.parametrize(
    ("device", "precision", "dimension", "said"),
    [
        (CPU, "float32", "background_consistency", "some processor, float32"),
        (CUDA, "float32", "background_consistency", "some card, float16 (openai-clip on CUDA)"),
        (CUDA, "float32", "imaging_quality", "some card, float32"),
        (CUDA, "bfloat16", "imaging_quality", "some card, bfloat16 (approximate)"),
    ],
)
def test_a_value_says_in_which_precision_it_was_computed(device, precision, dimension, said):
    line = judge(device, precision).line(dimension)
    assert line.startswith("vbench 0.1.5, weights ")
    assert line.endswith(said)
