"""Bytes counted from a config are those on the disk, and those that were published."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from baselines.rtn import RTN
from harness.artifact.quantize import quantize
from harness.bits import BitSpec
from harness.errors import HarnessError, UsageError
from harness.models.experts import FIRST, SECOND
from harness.models.families import family_by_name
from harness.models.families.base import linear_at, target_linears
from harness.models.families.parts import parts_of
from harness.models.inventory import Inventory, inventory
from harness.models.load import load_pipeline
from harness.models.table import model_spec
from harness.plan.size_sheet import GIB, PUBLISHED
from harness.plan.storage import EVERY, TOKENS, Scheme, Storage, storage
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.artifact import artifact_bytes, save_artifact
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import WeightSpec, quantize_linear
from harness.quant.layers.shards import StoredTensors
from harness.quant.layers.stored import MANIFEST, read_manifest, tensor_files
from harness.testing.miniatures import GENS, MINIATURES
from tests.models.small_folders import COG_5B, HUNYUAN

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from harness.spec import GenSpec

CONFIGS = {
    "CogVideoX-5B": ("CogVideoXTransformer3DModel", COG_5B),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel", HUNYUAN),
}
TOLERANCE = 0.005


def counted(name: str, scheme: Scheme) -> Storage:
    kind, config = CONFIGS[name]
    return storage(inventory(kind, config), scheme)


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_published_sizes_come_out_within_half_a_per_cent(name: str) -> None:
    size, known = counted(name, Scheme(bits=4)), PUBLISHED[name]
    assert size.plain / GIB == pytest.approx(known.plain, abs=0.0005)
    assert size.total / GIB == pytest.approx(known.quantized, rel=TOLERANCE)
    assert size.ratio == pytest.approx(known.plain / known.quantized, rel=TOLERANCE)


def test_the_published_ratios_are_those_of_the_paper() -> None:
    ratios = {name: f"{p.plain / p.quantized:.2f}" for name, p in PUBLISHED.items()}
    assert ratios == {"CogVideoX-5B": "3.94", "HunyuanVideo": "3.68"}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("linears", [TOKENS, EVERY])
def test_no_other_choice_of_linears_gives_them(name: str, linears: str) -> None:
    total = counted(name, Scheme(bits=4, linears=linears)).total
    assert abs(total / GIB / PUBLISHED[name].quantized - 1) > 2 * TOLERANCE


def made(
    pipeline: Any, family: str, gen: GenSpec, bits: int, group: int, out: Path, **options: Any
) -> Path:
    """An artifact of rtn, written as every artifact is."""
    out.mkdir()
    quantize(
        pipeline, RTN(), bits=BitSpec(w=bits, a=16), options={"group": group, **options},
        family=family, gen=gen, pool=None, seed=0, out=out, progress=lambda fraction, text: None,
    )  # fmt: skip
    return out


def tensor_bytes(folder: Path) -> int:
    """Bytes of the tensors of an artifact, from their shapes and types."""
    manifest = read_manifest(folder)
    held = StoredTensors(folder, tensor_files(manifest), manifest["shared"])
    return sum(held.get(name).nbytes for name in held.names())


def single_steps(folder: Path) -> list[Tensor]:
    """Steps of the linears that hold them in float32."""
    manifest = read_manifest(folder)
    held = StoredTensors(folder, tensor_files(manifest), manifest["shared"])
    steps = [held.get(f"{name}.scale") for name in manifest["layers"]]
    return [value for value in steps if value.dtype == torch.float32]


def check(folder: Path, found: Inventory, scheme: Scheme, *, more: int = 0) -> None:
    """Tensors to the byte; the file besides has its header, the artifact its manifest."""
    size, tensors = storage(found, scheme), tensor_bytes(folder)
    assert size.total + more == tensors
    headers = 0
    for name in tensor_files(read_manifest(folder)):
        with (folder / name).open("rb") as file:
            headers += 8 + int.from_bytes(file.read(8), "little")
    manifest = (folder / MANIFEST).stat().st_size
    assert artifact_bytes(folder) == tensors + headers + manifest
    report = json.loads((folder / "report.json").read_text())["footprint"]
    assert size.plain == report["fp16_bytes"]


def count(transformer: nn.Module, dtype: str, stored: str = "") -> Inventory:
    """From class and config of a denoiser, its weights unseen."""
    parts: list[Any] = list(parts_of(transformer).values())
    configs = [json.loads(part.to_json_string()) for part in parts]
    return inventory(type(parts[0]).__name__, *configs, dtype=dtype, stored=stored)


@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", MINIATURES)
def test_the_count_is_what_an_artifact_of_every_family_holds(
    family: str, bits: int, group: int, tmp_path: Path
) -> None:
    pipeline = MINIATURES[family]().to(torch.bfloat16)
    found = count(pipeline.transformer, "bfloat16")
    folder = made(pipeline, family, GENS[family], bits, group, tmp_path / "made")
    check(folder, found, Scheme(bits=bits, group=group))


@pytest.mark.parametrize("family", [name for name in MINIATURES if name != "cogvideox"])
def test_groups_of_16_are_counted_too(family: str, tmp_path: Path) -> None:
    pipeline = MINIATURES[family]().to(torch.bfloat16)
    found = count(pipeline.transformer, "bfloat16")
    folder = made(pipeline, family, GENS[family], 6, 16, tmp_path / "made")
    check(folder, found, Scheme(bits=6, group=16))


def test_a_group_that_the_method_refuses_is_refused_here(tmp_path: Path) -> None:
    pipeline = MINIATURES["cogvideox"]()  # its modulation reads 8 channels
    found = count(pipeline.transformer, "float32")
    with pytest.raises(UsageError, match="groups of 16 do not divide the 8 inputs"):
        storage(found, Scheme(bits=4, group=16))
    with pytest.raises(ValueError, match="not a multiple of group size 16"):
        made(pipeline, "cogvideox", GENS["cogvideox"], 4, 16, tmp_path / "made")


def test_both_experts_are_counted(tmp_path: Path) -> None:
    pipeline = MINIATURES["wan"](experts=2)
    for name in (FIRST, SECOND):
        getattr(pipeline, name).to(torch.bfloat16)
    one = count(pipeline.transformer, "bfloat16")
    folder = made(pipeline, "wan", GENS["wan"], 4, 0, tmp_path / "made")
    config = read_manifest(folder)["model_config"]["experts"]
    both = inventory("WanTransformer3DModel", *config.values())
    assert both.values == 2 * one.values
    check(folder, both, Scheme(bits=4))


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_stays_is_as_wide_as_file_and_model_both_hold_it(
    dtype: str, stored: str, tmp_path: Path
) -> None:
    pipeline = MINIATURES["wan"]()  # diffusers loads some of Wan's tensors in float32
    first = pipeline.transformer
    for value in first.parameters():
        torch.nn.init.normal_(value, std=0.2)  # no value of ones, which any width holds
    first.to(getattr(torch, stored)).save_pretrained(tmp_path / "model")
    loaded = type(first).from_pretrained(tmp_path / "model", dtype=getattr(torch, dtype))
    pipeline.transformer = loaded.eval().requires_grad_(False)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32, getattr(torch, dtype)}
    found = count(loaded, dtype, stored)
    folder = made(pipeline, "wan", GENS["wan"], 4, 0, tmp_path / "made")
    check(folder, found, Scheme(bits=4))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_bundled_model_differs_by_its_steps_in_float32(bits: int, tmp_path: Path) -> None:
    spec = model_spec("shapes")
    pipeline = load_pipeline(spec, device="cpu", dtype="float32")
    found = count(pipeline.transformer, "float32", "float16")
    folder = made(pipeline, "cogvideox", spec.gen, bits, 0, tmp_path / "made")
    single = single_steps(folder)
    assert len(single) == 2  # what no config tells
    assert all(float(steps.min()) < 2**-14 for steps in single)
    check(folder, found, Scheme(bits=bits), more=sum(2 * steps.numel() for steps in single))


def test_modulation_that_stays_is_counted_as_it_stays(tmp_path: Path) -> None:
    pipeline = MINIATURES["hunyuanvideo"]().to(torch.bfloat16)
    found = count(pipeline.transformer, "bfloat16")
    gen, out = GENS["hunyuanvideo"], tmp_path / "made"
    folder = made(pipeline, "hunyuanvideo", gen, 4, 0, out, modulation="fp")
    check(folder, found, Scheme(bits=4, linears=TOKENS))


def test_grids_with_a_zero_point_are_counted_as_they_are_stored(tmp_path: Path) -> None:
    transformer = MINIATURES["ltx"]().transformer.to(torch.bfloat16)
    found = count(transformer, "bfloat16")
    spec = WeightSpec(bits=4, group=8, symmetric=False)
    for name in target_linears(family_by_name("ltx"), transformer):
        layer = quantize_linear(linear_at(transformer, name), spec, ActivationSpec(bits=16))
        replace_module_(transformer, name, layer)
    save_artifact(transformer, tmp_path, {})
    scheme = Scheme(bits=4, group=8, symmetric=False)
    assert storage(found, scheme).total == tensor_bytes(tmp_path)


def test_zero_points_take_a_byte_beside_each_step() -> None:
    plain, offset = (counted("CogVideoX-5B", Scheme(bits=4, symmetric=s)) for s in (True, False))
    assert plain.zeros == 0
    assert offset.zeros == plain.steps / 2
    assert offset.total == plain.total + offset.zeros


def test_at_16_bits_everything_is_kept() -> None:
    size = counted("HunyuanVideo", Scheme(bits=16))
    assert (size.codes, size.steps, size.zeros) == (0, 0, 0)
    assert size.kept == size.plain == 2 * 12_821_012_544
    assert size.ratio == 1


@pytest.mark.parametrize(
    "config",
    [
        {"num_layers": "many"},
        {"num_attention_heads": -1},
        {"num_layers": 0},
        {"norm_elementwise_affine": True, "patch_size_t": 2, "text_embed_dim": None},
    ],
)
def test_a_config_that_cannot_be_counted_is_an_error(config: dict[str, Any]) -> None:
    with pytest.raises(HarnessError, match="config"):
        inventory("CogVideoXTransformer3DModel", config)


def test_a_class_of_no_family_is_an_error() -> None:
    with pytest.raises(HarnessError, match="belongs to no supported family"):
        inventory("FluxTransformer2DModel", {})
