"""What was loaded is what was asked: missing, foreign, broken tensors are refused by name."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from harness.errors import HarnessError
from harness.models import components
from harness.models.load import load_pipeline
from harness.models.loaded import check_finite, check_loading
from harness.models.table import model_spec
from harness.testing.miniatures import MINIATURES
from tests.models.real_folders import change_weights, with_pieces

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.spec import ModelSpec

PARTS = {"transformer": "denoiser", "vae": "decoder"}
FILES = {
    "transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model",
    "text_encoder": "model", "text_encoder_2": "model",
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A HunyuanVideo: two text encoders, of Llama and of CLIP."""
    folder = tmp_path_factory.mktemp("models") / "hunyuan"
    MINIATURES["hunyuanvideo"]().save_pretrained(folder)
    return model_spec(str(folder))


@pytest.fixture
def copied(whole: ModelSpec, tmp_path: Path) -> tuple[ModelSpec, Path]:
    from dataclasses import replace

    folder = tmp_path / "model"
    shutil.copytree(whole.repo, folder)
    return replace(whole, repo=str(folder)), folder


def refused(spec: ModelSpec, component: str) -> HarnessError:
    with pytest.raises(HarnessError) as caught:
        load_pipeline(spec, device="cpu", dtype="bfloat16", parts={PARTS.get(component, "text")})
    assert "\n" not in caught.value.message
    assert component in caught.value.message
    return caught.value


def weights_of(folder: Path, component: str) -> Path:
    return folder / component / f"{FILES[component]}.safetensors"


@pytest.mark.parametrize("component", FILES)
def test_missing_unexpected_and_misshapen_tensors_are_named(
    copied: tuple[ModelSpec, Path], component: str
) -> None:
    spec, folder = copied
    file = weights_of(folder, component)
    held = file.read_bytes()
    taken: list[str] = []

    def lack(tensors: dict[str, torch.Tensor]) -> None:
        taken.extend(sorted(n for n in tensors if n.endswith("weight"))[:4])
        for name in taken:
            del tensors[name]

    change_weights(file, lack)
    message = refused(spec, component).message
    assert all(f"'{name}'" in message for name in taken[:3]), message
    assert "and 1 more" in message
    assert taken[3] not in message

    file.write_bytes(held)
    change_weights(file, lambda tensors: tensors.update({"foreign.weight": torch.ones(2)}))
    assert "has unexpected 'foreign.weight'" in refused(spec, component).message

    file.write_bytes(held)

    def misshape(tensors: dict[str, torch.Tensor]) -> None:
        tensors[taken[0]] = torch.ones(3, 1)

    change_weights(file, misshape)
    message = refused(spec, component).message
    assert "has another shape in" in message
    assert taken[0] in message
    assert "3, 1" in message


@pytest.mark.parametrize("component", FILES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_found_before_anything_is_computed(
    copied: tuple[ModelSpec, Path], component: str, value: float
) -> None:
    spec, folder = copied
    names: list[str] = []

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        names.append(sorted(n for n in tensors if n.endswith("weight"))[-1])
        tensors[names[0]].view(-1)[-1] = value

    change_weights(weights_of(folder, component), spoil)
    message = refused(spec, component).message
    assert "NaN or infinite" in message
    assert f"'{names[0]}'" in message


def test_a_weight_that_overflows_the_computing_dtype_is_found(
    copied: tuple[ModelSpec, Path],
) -> None:
    spec, folder = copied
    file = weights_of(folder, "transformer")
    change_weights(file, lambda t: t["proj_out.bias"].fill_(1e6))
    load_pipeline(spec, device="cpu", dtype="bfloat16", parts={"denoiser"})
    with pytest.raises(HarnessError, match=r"infinite: 'proj_out.bias'") as caught:
        load_pipeline(spec, device="cpu", dtype="float16", parts={"denoiser"})
    assert "bfloat16" in caught.value.hint


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_narrow_and_whole_numbers_are_checked_as_they_are(dtype: torch.dtype) -> None:
    module = nn.Module()
    module.register_buffer("codes", torch.arange(4, dtype=torch.uint8))
    module.register_buffer("empty", torch.ones(0))
    module.register_buffer("mask", torch.full((2,), float("-inf")), persistent=False)
    module.register_buffer("scale", torch.ones(5).to(dtype))
    check_finite("vae", module)
    module.register_buffer("scale", torch.tensor([1.0, float("nan")]).to(dtype))
    with pytest.raises(HarnessError, match=r"component 'vae' .*: 'scale'"):
        check_finite("vae", module)


def test_a_buffer_that_the_class_computes_may_be_stored_and_no_other_key() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("position_ids", torch.arange(2), persistent=False)
    found: dict[str, Any] = {"missing_keys": [], "mismatched_keys": []}
    check_loading("text_encoder", module, found | {"unexpected_keys": ["position_ids"]})
    with pytest.raises(HarnessError, match="unexpected 'weight_g'"):
        check_loading("text_encoder", module, found | {"unexpected_keys": ["weight_g"]})


def test_the_decoder_of_a_whole_t5_may_lie_beside_its_encoder(tmp_path: Path) -> None:
    pipeline = MINIATURES["cogvideox"]()
    pipeline.save_pretrained(tmp_path)
    file = tmp_path / "text_encoder" / "model.safetensors"
    key = "decoder.block.0.layer.0.SelfAttention.q.weight"
    change_weights(file, lambda tensors: tensors.update({key: torch.ones(2, 2)}))
    loaded = load_pipeline(model_spec(str(tmp_path)), device="cpu", dtype="float32", parts={"text"})
    expected = pipeline.text_encoder.encoder.embed_tokens.weight
    assert torch.equal(loaded.text_encoder.encoder.embed_tokens.weight, expected)


def cut(folder: Path) -> None:
    file = weights_of(folder, "vae")
    file.write_bytes(file.read_bytes()[:200])


def pointer(folder: Path) -> None:
    weights_of(folder, "vae").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9\n"
    )


def no_config(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()


def damaged_config(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text("{")


def foreign_config(folder: Path) -> None:
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": "wide"}))


def no_weights(folder: Path) -> None:
    weights_of(folder, "vae").unlink()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut, "damaged file of weights, 'diffusion_pytorch_model.safetensors'"),
    "pointer": (pointer, "damaged file of weights, 'diffusion_pytorch_model.safetensors'"),
    "no config": (no_config, "cannot be loaded"),
    "damaged config": (damaged_config, "cannot be loaded"),
    "foreign config": (foreign_config, "cannot be loaded"),
    "no weights": (no_weights, "has no weights ('diffusion_pytorch_model.safetensors')"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_component_is_told_in_two_lines(
    copied: tuple[ModelSpec, Path], name: str
) -> None:
    spec, folder = copied
    damage, expected = DAMAGES[name]
    damage(folder)
    error = refused(spec, "vae")
    assert expected in error.message
    assert error.hint
    assert "bug" not in str(error)


def test_too_little_memory_and_missing_packages_name_the_component(
    copied: tuple[ModelSpec, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _ = copied
    for cause, expected in (
        (MemoryError(), "not enough memory to load component 'vae'"),
        (ImportError("\nX requires the ftfy library\nsee ..."), "X requires the ftfy library"),
    ):

        def fail(*_: object, cause: Exception = cause) -> None:
            raise cause

        monkeypatch.setattr(components, "_read", fail)
        assert expected in refused(spec, "vae").message

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(components, "_read", full)
    with pytest.raises(torch.OutOfMemoryError):  # the row says that it ran out of memory
        load_pipeline(spec, device="cpu", dtype="bfloat16", parts={"decoder"})


def test_a_tokenizer_of_pieces_says_which_package_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MINIATURES["cogvideox"]().save_pretrained(tmp_path)
    spec = model_spec(str(with_pieces(tmp_path)))
    monkeypatch.setattr(components, "find_spec", lambda name: None)
    with pytest.raises(HarnessError, match="needs the package protobuf") as caught:
        load_pipeline(spec, device="cpu", dtype="float32", parts={"text"})
    assert caught.value.hint == "pip install protobuf"


def test_a_class_that_is_not_there_and_an_index_without_a_component_are_told(
    copied: tuple[ModelSpec, Path],
) -> None:
    spec, folder = copied
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderKLOfNextYear"]}))
    assert "is a 'AutoencoderKLOfNextYear' of 'diffusers'" in refused(spec, "vae").message
    path.write_text(json.dumps(index | {"vae": ["their_code", "Decoder"]}))
    assert "is a 'Decoder' of 'their_code'" in refused(spec, "vae").message
    path.write_text(json.dumps({k: v for k, v in index.items() if k != "vae"}))
    assert "names no 'vae', which a HunyuanVideoPipeline needs" in refused(spec, "vae").message
    path.write_text(json.dumps(index | {"_class_name": "NextYearPipeline"}))
    with pytest.raises(HarnessError, match="is a 'NextYearPipeline'"):
        load_pipeline(spec, device="cpu", dtype="bfloat16")
