"""Folders in the file formats of real repositories load, whole and in the width they are run in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file

from harness.errors import HarnessError
from harness.models.files import choose_weights, part_of
from harness.models.load import load_pipeline
from harness.models.table import model_spec
from harness.testing.miniatures import MINIATURES
from tests.models.real_folders import FORMATS, name_component, pickled, two_variants, with_pieces

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "a red circle moves left"


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_in_the_format_of_its_family_loads_with_the_weights_it_holds(
    name: str, tmp_path: Path
) -> None:
    folder = FORMATS[name](tmp_path / "model")
    dtype = "float16" if name == "latte" else "bfloat16"
    pipeline = load_pipeline(model_spec(str(folder)), device="cpu", dtype=dtype)
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        if (network := getattr(pipeline, part, None)) is None:
            continue
        stored: dict[str, torch.Tensor] = {}
        for file in (folder / part).glob("*.safetensors"):
            stored |= load_file(file)
        loaded = network.state_dict()
        assert stored
        for key, value in stored.items():
            assert torch.equal(loaded[key], value.to(loaded[key].dtype)), (part, key)
    single = name == "wan"  # whose VAE is run in float32, as it is stored
    assert pipeline.vae.dtype == (torch.float32 if single else getattr(torch, dtype))
    assert pipeline.transformer.dtype == getattr(torch, dtype)
    assert not hasattr(pipeline, "image_encoder")


def test_pieces_alone_make_the_tokens_that_the_library_of_pieces_makes(tmp_path: Path) -> None:
    MINIATURES["ltx"]().save_pretrained(tmp_path)
    folder = with_pieces(tmp_path)
    assert not (folder / "tokenizer" / "tokenizer.json").exists()
    pipeline = load_pipeline(model_spec(str(folder)), device="cpu", dtype="float32", parts={"text"})
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer" / "spiece.model"))
    found = pipeline.tokenizer(TEXT, truncation=False).input_ids
    assert found == [*pieces.encode(TEXT), pieces.eos_id()]
    assert len(set(found)) > 4


@pytest.mark.parametrize(("dtype", "seed"), [("bfloat16", 2), ("float16", 1), ("float32", 1)])
def test_of_two_variants_the_one_nearest_to_the_computing_dtype_is_loaded(
    tmp_path: Path, dtype: str, seed: int
) -> None:
    spec = model_spec(str(two_variants(tmp_path)))
    pipeline: Any = load_pipeline(spec, device="cpu", dtype=dtype)
    expected: Any = MINIATURES["cogvideox"](seed)
    stored = torch.bfloat16 if seed == 2 else torch.float16
    for part in ("transformer", "vae", "text_encoder"):
        one = getattr(expected, part).to(stored).state_dict()
        for key, value in getattr(pipeline, part).state_dict().items():
            assert torch.equal(value, one[key].to(value.dtype)), (part, key)


def test_weights_without_a_variant_come_before_those_with_one(tmp_path: Path) -> None:
    two_variants(tmp_path)
    MINIATURES["cogvideox"](3).save_pretrained(tmp_path)
    pipeline: Any = load_pipeline(model_spec(str(tmp_path)), device="cpu", dtype="bfloat16")
    expected: Any = MINIATURES["cogvideox"](3)
    assert torch.equal(pipeline.vae.decoder.conv_in.conv.weight,
                       expected.vae.decoder.conv_in.conv.weight.bfloat16())  # fmt: skip


@pytest.mark.parametrize(
    ("library", "names", "dtype", "variant", "file"),
    [
        ("diffusers", ["diffusion_pytorch_model.safetensors"], "float16", "",
         "diffusion_pytorch_model.safetensors"),
        # each library looks first for one of the two
        ("diffusers", ["diffusion_pytorch_model.safetensors",
                       "diffusion_pytorch_model.safetensors.index.json"], "float16", "",
         "diffusion_pytorch_model.safetensors.index.json"),
        ("transformers", ["model.safetensors", "model.safetensors.index.json"], "float16", "",
         "model.safetensors"),
        ("transformers", ["model.fp32.safetensors", "model.fp16.safetensors"], "bfloat16", "fp32",
         "model.fp32.safetensors"),
        ("transformers", ["model.ema.safetensors"], "bfloat16", "ema", "model.ema.safetensors"),
        ("transformers", ["model.safetensors.index.fp16.json",
                          "model.fp16-00001-of-00002.safetensors"], "bfloat16", "fp16",
         "model.safetensors.index.fp16.json"),
        # a pickle beside safetensors is nobody's business
        ("transformers", ["model.safetensors", "pytorch_model.bin"], "bfloat16", "",
         "model.safetensors"),
    ],
)  # fmt: skip
def test_one_form_of_the_weights_is_chosen_as_the_libraries_choose(
    library: str, names: list[str], dtype: str, variant: str, file: str
) -> None:
    form = choose_weights(names, "text_encoder", library, dtype)
    assert (form.variant, form.file, form.sharded) == (variant, file, "index" in file)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.ema.safetensors", "model.old.safetensors"], "only as variants ema, old"),
        (["model-00001-of-00002.safetensors"], "without their index"),
        (["pytorch_model-00001-of-00002.bin"], "only pickled weights"),
        (["config.json"], r"no weights \('model.safetensors'\)"),
    ],
)
def test_where_no_form_can_be_chosen_it_is_said_why(names: list[str], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        choose_weights(names, "text_encoder", "transformers", "bfloat16")


def test_pickles_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = pickled(tmp_path)
    with pytest.raises(HarnessError, match=r"'pytorch_model.bin'"):
        model_spec(str(folder))


def test_a_lost_shard_is_named(tmp_path: Path) -> None:
    folder = FORMATS["ltx"](tmp_path)
    spec = model_spec(str(folder))
    lost = sorted((folder / "vae").glob("*-of-*"))[1]
    lost.unlink()
    with pytest.raises(HarnessError) as caught:
        load_pipeline(spec, device="cpu", dtype="bfloat16", parts={"decoder"})
    assert f"'{lost.name}'" in caught.value.message
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text("[]")
    with pytest.raises(HarnessError, match="index of shards"):
        load_pipeline(spec, device="cpu", dtype="bfloat16", parts={"decoder"})


def test_an_optional_component_that_no_text_to_video_run_needs_is_not_read() -> None:
    assert part_of("image_encoder") is part_of("feature_extractor") is None
    assert part_of("prompt_enhancer_llm_model") is part_of("safety_checker") is None
    assert part_of("text_encoder_3") == "text"
    assert part_of("transformer_2") == "denoiser"
    assert part_of("scheduler") == part_of("guider") == ""


def test_a_second_tokenizer_is_text_too_and_a_component_of_no_class_is_left_out(
    tmp_path: Path,
) -> None:
    folder = FORMATS["hunyuanvideo"](tmp_path / "model")
    name_component(folder, "image_encoder", [None, None])
    spec = model_spec(str(folder))
    text = load_pipeline(spec, device="cpu", dtype="bfloat16", parts={"text"})
    assert type(text.tokenizer_2).__name__ == "CLIPTokenizer"
    denoiser = load_pipeline(spec, device="cpu", dtype="bfloat16", parts={"denoiser"})
    assert denoiser.tokenizer_2 is denoiser.text_encoder_2 is None
    index = json.loads((folder / "model_index.json").read_text())
    assert index["image_encoder"] == [None, None]
