"""A quantized denoiser is built from its artifact alone, and computes what it computed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from harness.errors import HarnessError
from harness.models.families import family_by_name
from harness.models.families.base import linear_at, target_linears
from harness.models.families.fold import fold_scale_
from harness.models.families.fold_targets import TableFold
from harness.models.sample import denoise
from harness.quant.layers import shards
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.apply import activation_of
from harness.quant.layers.artifact import (
    MANIFEST,
    WEIGHTS,
    artifact_bytes,
    load_artifact_,
    open_quantized_denoiser,
    save_artifact,
    stored_layers,
)
from harness.quant.layers.layers import quantized_layers, replace_module_
from harness.quant.layers.linear import WeightSpec, quantize_linear
from harness.testing.miniatures import GENS, MINIATURES

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def first_call(family: str) -> tuple[Any, dict[str, Any]]:
    """A miniature's denoiser and the arguments of its first call in the sampler."""
    pipeline = MINIATURES[family](0)
    seen: list[dict[str, Any]] = []
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    denoise(pipeline, "a red circle", GENS[family], seed=0, on_step=lambda step, latents: None)
    handle.remove()
    return pipeline.transformer, seen[0]


def cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(dtype)
    return tuple(cast(v, dtype) for v in value) if isinstance(value, tuple) else value


def output(transformer: nn.Module, arguments: dict[str, Any], dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        out: Tensor = transformer(**{k: cast(v, dtype) for k, v in arguments.items()})[0]
    return out


def realigned(transformer: nn.Module) -> nn.Module:
    """Weights in memory of their own: where a mapped file has them, a product may round else."""
    for value in transformer.parameters():
        value.data = value.data.clone()
    return transformer.requires_grad_(False)


def quantize_(transformer: nn.Module, family: str) -> None:
    """Round to nearest, with a scale in the modulation table where the family has one."""
    facts = family_by_name(family)
    for _, block in facts.blocks(transformer):
        for group in facts.groups(block):
            if isinstance(group.fold, TableFold):
                width = linear_at(block, group.linears[0]).in_features
                fold_scale_(block, group, torch.linspace(0.5, 2.0, width))
    for name, group in target_linears(facts, transformer).items():
        layer = quantize_linear(
            linear_at(transformer, name), WeightSpec(bits=4, group=8),
            activation_of(group, ActivationSpec(bits=8)),
        )  # fmt: skip
        replace_module_(transformer, name, layer)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("family", MINIATURES)
def test_it_computes_the_bits_of_the_model_that_was_loaded_and_replaced(
    family: str, name: str, tmp_path: Path
) -> None:
    dtype = DTYPES[name]
    transformer, arguments = first_call(family)
    transformer.save_pretrained(tmp_path / "model")
    kind = type(transformer)
    loaded = realigned(kind.from_pretrained(tmp_path / "model", dtype=dtype))
    quantize_(loaded, family)
    (tmp_path / "made").mkdir()
    save_artifact(loaded, tmp_path / "made", {"model_class": kind.__name__})
    replaced = realigned(kind.from_pretrained(tmp_path / "model", dtype=dtype))
    load_artifact_(replaced, tmp_path / "made")
    opened = open_quantized_denoiser(tmp_path / "made")
    wanted = output(loaded, arguments, dtype)
    assert torch.isfinite(wanted).all()
    assert torch.equal(output(replaced, arguments, dtype), wanted)
    assert torch.equal(output(opened, arguments, dtype), wanted)
    assert not opened.training
    assert not any(p.requires_grad for p in opened.parameters())
    assert {n: v.dtype for n, v in opened.state_dict().items()} == {
        n: v.dtype for n, v in replaced.state_dict().items()
    }
    tables = {n: v for n, v in loaded.named_buffers() if n not in loaded.state_dict()}
    for table, value in opened.named_buffers():
        assert table not in tables or torch.equal(value, tables[table])


def small(tmp_path: Path) -> tuple[Any, dict[str, Any], Path]:
    transformer, arguments = first_call("wan")
    quantize_(transformer, "wan")
    folder = tmp_path / "made"
    folder.mkdir()
    save_artifact(transformer, folder, {"model_class": type(transformer).__name__})
    return transformer, arguments, folder


def test_a_large_artifact_lies_in_shards_and_loads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 10_000)
    transformer, arguments, folder = small(tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    files = manifest["files"]
    assert manifest["schema"] == 2
    assert len(files) > 3 and files[0] == "weights-00001.safetensors"
    assert {p.name for p in folder.iterdir()} == {MANIFEST, *files}
    for held in (load_file(folder / name) for name in files):
        assert len(held) == 1 or sum(value.nbytes for value in held.values()) <= 10_000
    assert artifact_bytes(folder) == sum(p.stat().st_size for p in folder.iterdir())
    assert dict(stored_layers(folder)).keys() == quantized_layers(transformer).keys()
    opened = open_quantized_denoiser(folder)
    wanted = output(transformer, arguments, torch.float32)
    assert torch.equal(output(opened, arguments, torch.float32), wanted)


def test_a_small_artifact_is_one_file_as_before(tmp_path: Path) -> None:
    _, _, folder = small(tmp_path)
    assert {p.name for p in folder.iterdir()} == {MANIFEST, WEIGHTS}
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["schema"] == 1 and "files" not in manifest


def test_an_artifact_without_the_config_of_its_model_needs_it_given(tmp_path: Path) -> None:
    transformer, arguments, folder = small(tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    config = manifest.pop("model_config")
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(HarnessError, match="does not hold the config of its model"):
        open_quantized_denoiser(folder)
    opened = open_quantized_denoiser(folder, config=config)
    wanted = output(transformer, arguments, torch.float32)
    assert torch.equal(output(opened, arguments, torch.float32), wanted)


def test_a_config_that_the_class_does_not_take_is_two_lines(tmp_path: Path) -> None:
    folder = small(tmp_path)[2]
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["model_config"]["patch_size"] = "much"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(HarnessError, match="no WanTransformer3DModel can be built"):
        open_quantized_denoiser(folder)
