"""Layers of quantization libraries: stored, loaded, checked and labelled without their method."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from harness.bits import BitSpec
from harness.errors import HarnessError
from harness.plan import registry
from harness.quant.layers import library
from harness.quant.layers.artifact import load_artifact_, save_artifact
from harness.quant.layers.library import (
    LibraryLinear,
    LibraryScheme,
    installed_version,
    low_bit_product,
)
from tests.baselines.back_ends import converted, miniature, output

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [
    ("torchao-int8", "w8a8", "torchao"),
    ("quanto", "w8a16", "optimum-quanto"),
    ("quanto", "w4a16", "optimum-quanto"),
    ("bnb-nf4", "w4a16", "bitsandbytes"),
]


WIDTH = 64  # bitsandbytes refuses narrower layers on a CPU


def made(
    row: tuple[str, str, str], dtype: torch.dtype = torch.float32, **options: Any
) -> nn.Module:
    name, bits, package = row
    if not installed_version(package):
        pytest.skip(f"{package} is not installed")
    method = registry.load_method(name)
    if (refusal := method.supports("cogvideox", BitSpec.parse(bits))) is not None:
        pytest.skip(refusal.reason)
    return converted(method, bits, dtype, WIDTH, **options)[0]


@pytest.mark.parametrize(
    ("row", "dtype"),
    [(row, torch.float32) for row in ROWS]
    # quanto refuses w8a16 in bfloat16 on a CPU
    + [(row, torch.bfloat16) for row in ROWS if row[:2] != ("quanto", "w8a16")],
    ids=str,
)
def test_a_saved_and_loaded_model_computes_the_same_bits_without_the_method(
    row: tuple[str, str, str], dtype: torch.dtype, tmp_path: Path
) -> None:
    transformer = made(row, dtype)
    wanted = output(transformer)
    save_artifact(transformer, tmp_path, {})
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = miniature(dtype, WIDTH)
    load_artifact_(loaded, tmp_path)
    assert torch.equal(output(loaded), wanted)
    layers = [m for m in loaded.modules() if isinstance(m, LibraryLinear)]
    assert layers
    assert [problem for layer in layers for problem in layer.problems()] == []
    # And again: what was loaded is stored as it was.
    (tmp_path / "again").mkdir()
    save_artifact(loaded, tmp_path / "again", {})
    for name in ("artifact.json", "weights.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_copy_computes_the_same_and_leaves_the_original_alone(row: tuple[str, str, str]) -> None:
    transformer = made(row)
    copied = copy.deepcopy(transformer)
    wanted = output(transformer)
    assert torch.equal(output(copied), wanted)
    for layer in copied.modules():
        if isinstance(layer, LibraryLinear):
            layer.inner.bias.zero_()
    assert not torch.equal(output(copied), wanted)
    assert torch.equal(output(transformer), wanted)


@pytest.mark.parametrize("row", ROWS[:1] + ROWS[2:], ids=lambda row: row[0])
def test_loading_without_the_library_says_what_to_install(
    row: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer, package = made(row), row[2]
    save_artifact(transformer, tmp_path, {})
    version = json.loads((tmp_path / "artifact.json").read_text())["layers"][
        "transformer_blocks.0.ff.net.2"
    ]["version"]
    assert version == installed_version(package)
    monkeypatch.setattr(library, "installed_version", lambda name: "")
    with pytest.raises(HarnessError) as missing:
        load_artifact_(miniature(width=WIDTH), tmp_path)
    assert str(missing.value) == (
        f"error: the artifact holds layers of {package} {version}; it is not installed\n"
        f"hint: pip install '{package}=={version}'"
    )
    monkeypatch.setattr(library, "installed_version", lambda name: "0.0.1")
    with pytest.raises(HarnessError, match=r"version 0\.0\.1 is installed") as other:
        load_artifact_(miniature(width=WIDTH), tmp_path)
    assert "or quantize again" in other.value.hint


def test_a_build_label_is_no_part_of_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.metadata, "version", lambda name: "0.18.0+cu126")
    assert installed_version("torchao") == "0.18.0"


class Rounded(nn.Module):
    """A linear that multiplies integers, and one that only pretends to."""

    def __init__(self, honest: bool) -> None:
        super().__init__()
        self.honest = honest

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = torch.ones(8, 16, dtype=torch.int8)
        if self.honest:
            return torch._int_mm(x.to(torch.int8), codes.t()).to(x.dtype)
        return x.to(torch.int8).to(x.dtype) @ codes.t().to(x.dtype)


@pytest.mark.parametrize("honest", [True, False])
def test_a_kernel_is_what_runs_not_what_is_claimed(honest: bool) -> None:
    scheme = LibraryScheme(library="torchao", w_bits=8, a_bits=8)
    layer = LibraryLinear(Rounded(honest), scheme, (8, 16), torch.float32)
    assert low_bit_product(layer, torch.device("cpu")) == ("_int_mm" if honest else "")


def test_codes_of_another_width_than_declared_are_found() -> None:
    layer = made(ROWS[0]).get_submodule("transformer_blocks.0.ff.net.2")
    assert isinstance(layer, LibraryLinear)
    layer.scheme = LibraryScheme(library="torchao", w_bits=4, a_bits=8)
    assert "bytes of codes" in layer.problems()[0]


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_a_scale_that_is_not_finite_is_found(broken: float) -> None:
    layer = made(ROWS[0]).get_submodule("transformer_blocks.0.ff.net.2")
    assert isinstance(layer, LibraryLinear)
    layer.inner.weight.scale[0] = broken
    assert layer.problems() == ["weight.scale is not finite"]
