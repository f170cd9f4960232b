"""Storage counted from configs is what papers print and what an artifact has on disk."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from harness.bits import BitSpec
from harness.method import QuantContext
from harness.models.families import family_by_name
from harness.plan.registry import load_method
from harness.plan.storage import GIB, PUBLISHED, SINGLE, Linears, linears_of, storage_rows
from harness.quant.layers.stored import save_artifact
from harness.testing.miniatures import MINIATURES

CONFIGS = tomllib.loads(Path("tools/real_models.toml").read_text())["model"]
CLASSES = {
    "CogVideoX-5B": "CogVideoXTransformer3DModel",
    "HunyuanVideo": "HunyuanVideoTransformer3DModel",
}


@pytest.fixture(scope="module")
def counted() -> dict[str, Linears]:
    return {
        one["name"]: linears_of(CLASSES[one["name"]], one.get("transformer", {}), one["family"])
        for one in CONFIGS
        if one["name"] in CLASSES
    }


@pytest.mark.parametrize(
    ("name", "full", "low", "ratio"),
    [("CogVideoX-5B", 10.375, 2.633, 3.94), ("HunyuanVideo", 23.881, 6.494, 3.68)],
)
def test_published_storage_is_met(
    counted: dict[str, Linears], name: str, full: float, low: float, ratio: float
) -> None:
    linears = counted[name]
    found = linears.bytes_at(4, step=SINGLE)
    assert linears.full_bytes() / GIB == pytest.approx(full, rel=1e-4)
    assert found / GIB == pytest.approx(low, rel=0.001)
    assert linears.full_bytes() / found == pytest.approx(ratio, abs=0.005)
    # half precision, as an artifact here has it, is within what was asked for too
    assert linears.bytes_at(4) / GIB == pytest.approx(low, rel=0.005)
    assert linears.parameters in {known.parameters for known in PUBLISHED}
    name, size, told = storage_rows(linears)[-1]
    assert name == "w4, steps in 32 bits"
    assert size == f"{found / GIB:.3f} GiB"
    assert told.startswith(f"{low} GiB in S2Q-VDiT, arXiv 2508.04016, table 5: ")


def stored_bytes(folder: Path) -> int:
    """Bytes of every tensor in an artifact."""
    found = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    return found


@pytest.mark.parametrize("family", sorted(MINIATURES))
@pytest.mark.parametrize(("bits", "group"), [(4, 0), (8, 0), (6, 0), (4, 8)])
def test_what_is_counted_is_what_an_artifact_holds(
    tmp_path: Path, family: str, bits: int, group: int
) -> None:
    denoiser: Any = MINIATURES[family](0).transformer.half()
    method = load_method("rtn")
    ctx = QuantContext(
        bits=BitSpec.parse(f"w{bits}a8"), options=method.Options(group=group),
        family=family_by_name(family), device=denoiser.device, data_free=True,
    )  # fmt: skip
    linears = linears_of(type(denoiser).__name__, dict(denoiser.config), family)
    buffers = sum(b.nbytes for n, b in denoiser.named_buffers() if n in denoiser.state_dict())
    assert linears.parameters == sum(p.numel() for p in denoiser.parameters())
    method.quantize_(denoiser, ctx)
    save_artifact(denoiser, tmp_path, {})
    assert stored_bytes(tmp_path) == linears.bytes_at(bits, group=group) + buffers


def test_what_nobody_published_has_no_such_row() -> None:
    rows = storage_rows(Linears(parameters=1000, shapes=((10, 64), (4, 30))))
    assert [name for name, _, _ in rows][-1] == "w4, groups of 128"
    # 640 and 120 codes at 4 bits, 14 steps of 2 bytes, 240 parameters of 2 bytes
    assert Linears(parameters=1000, shapes=((10, 64), (4, 30))).bytes_at(4) == 320 + 60 + 28 + 480
    assert rows[0][1] == "0.00 MiB"
