"""A model in bfloat16 is quantized, saved and loaded like any other, with what a family folds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from harness.artifact.quantize import quantize
from harness.artifact.verify import verify
from harness.bits import BitSpec
from harness.models.block_input import Sample
from harness.models.load import load_pipeline
from harness.models.table import model_spec
from harness.models.trajectories import CalibrationPool, record_pool
from harness.plan import registry
from harness.testing.conformance import PROMPTS
from harness.testing.miniatures import GENS, MINIATURES

if TYPE_CHECKING:
    from pathlib import Path

QUICK = {"samples": 2, "iterations": 2, "timesteps": 2}


@pytest.mark.parametrize("name", MINIATURES)
def test_a_bfloat16_model_is_folded_quantized_and_brought_back_bit_for_bit(
    name: str, tmp_path: Path
) -> None:
    MINIATURES[name]().save_pretrained(tmp_path / "model", max_shard_size="20KB")
    spec = model_spec(str(tmp_path / "model"))
    pipeline, fresh = (load_pipeline(spec, device="cpu", dtype="bfloat16") for _ in range(2))
    for part in ("pool", "artifact"):
        (tmp_path / part).mkdir()
    record_pool(
        pipeline, PROMPTS[:2], GENS[name], seed=0, folder=tmp_path / "pool",
        progress=lambda done, text: None,
    )  # fmt: skip
    call = CalibrationPool.open(tmp_path / "pool").call(Sample(0, 1)).arguments
    with torch.no_grad():
        exact = pipeline.transformer(**call)[0].float()
    quantize(
        pipeline, registry.load_method("ptq4dit"), bits=BitSpec.parse("w8a8"), options=QUICK,
        family=spec.family, gen=GENS[name], pool=tmp_path / "pool", seed=0,
        out=tmp_path / "artifact", progress=lambda done, text: None,
    )  # fmt: skip
    verify(fresh, tmp_path / "artifact", family=name, bits=BitSpec.parse("w8a8"), fresh=True)
    with torch.no_grad():
        made, brought = (p.transformer(**call)[0] for p in (pipeline, fresh))
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, brought)
    error = (made.float() - exact).square().sum() / exact.square().sum()
    assert 0 < float(error) < 0.05
