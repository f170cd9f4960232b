"""A pipeline is loaded in parts: each does its stage, and no more is read than it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from harness.models.load import load_pipeline
from harness.models.sample import denoise, family_of
from harness.models.table import model_spec
from harness.models.text import encode_text
from harness.testing.miniatures import GENS, MINIATURES

if TYPE_CHECKING:
    from harness.spec import ModelSpec

TEXT = "a red circle moves"
NETWORKS = {"text_encoder", "text_encoder_2", "transformer", "vae"}


@pytest.fixture(scope="module", params=MINIATURES)
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("models") / request.param
    MINIATURES[request.param]().save_pretrained(folder)
    return model_spec(str(folder))


def load(spec: ModelSpec, *parts: str) -> Any:
    return load_pipeline(spec, device="cpu", dtype="bfloat16", parts=parts or None)


def networks(pipeline: Any) -> set[str]:
    return {n for n, part in pipeline.components.items() if isinstance(part, nn.Module)}


def test_text_and_denoiser_alone_sample_what_the_whole_pipeline_samples(spec: ModelSpec) -> None:
    whole = load(spec)
    assert whole.device.type == "cpu"
    assert networks(whole) == NETWORKS & set(whole.components)
    gen = GENS[spec.family]
    expected = denoise(whole, TEXT, gen, seed=3)
    text = load(spec, "text")
    assert networks(text) == {n for n in networks(whole) if n.startswith("text")}
    prompt = encode_text(text, TEXT, gen)
    denoiser = load(spec, "denoiser")
    assert networks(denoiser) == {"transformer"}
    assert denoiser.tokenizer is None
    assert denoiser.scheduler is not None
    assert torch.equal(denoise(denoiser, prompt, gen, seed=3), expected)


def test_the_decoder_alone_decodes_what_the_whole_pipeline_decodes(spec: ModelSpec) -> None:
    whole, decoder = load(spec), load(spec, "decoder")
    assert networks(decoder) == {"vae"}
    if spec.family == "latte":
        given = torch.randn(1, 4, 4, 8, 8, dtype=torch.bfloat16)
    else:
        given = torch.randn(1, 4, 3, 8, 8, dtype=decoder.vae.dtype)
    with torch.no_grad():
        if spec.family == "cogvideox":
            one, two = (p.decode_latents(given.transpose(1, 2)) for p in (whole, decoder))
        elif spec.family == "latte":
            one, two = (p.decode_latents(given, 4, decode_chunk_size=4) for p in (whole, decoder))
        else:
            one, two = (p.vae.decode(given, return_dict=False)[0] for p in (whole, decoder))
    assert torch.equal(one, two)
    assert one.isfinite().all()


def test_what_stands_in_answers_with_the_config_and_runs_nothing(spec: ModelSpec) -> None:
    whole, text = load(spec), load(spec, "text")
    assert family_of(text).name == spec.family
    for name in ("vae", "transformer"):
        network, other = getattr(whole, name), getattr(text, name)
        mine, its = ({k: v for k, v in n.config.items() if k[0] != "_"} for n in (other, network))
        assert mine == its
        assert other.dtype == network.dtype
        assert not isinstance(other, nn.Module)
        for method in ("decode", "forward", "to", "parameters"):
            assert not hasattr(other, method)
    scales = {k: v for k, v in vars(whole).items() if "scale" in k or "ratio" in k}
    assert scales == {k: vars(text)[k] for k in scales}


def test_an_unknown_part_is_no_part(spec: ModelSpec) -> None:
    with pytest.raises(ValueError, match="decoder"):
        load(spec, "vae")
    if spec.family == "cogvideox":
        assert networks(load_pipeline(spec, device="cpu", dtype="float32", parts=())) == set()


def test_weights_of_other_parts_are_not_read(spec: ModelSpec) -> None:
    from pathlib import Path

    for part, folder in (("denoiser", "transformer"), ("text", "text_encoder"), ("decoder", "vae")):
        files = [
            path
            for other in ("transformer", "text_encoder", "text_encoder_2", "vae")
            for path in (Path(spec.repo) / other).glob("*.safetensors")
            if not (other == folder or (part == "text" and other.startswith(folder)))
        ]
        held = {path: path.read_bytes() for path in files}
        for path in files:
            path.unlink()
        try:
            assert networks(load(spec, part)) >= {folder}
        finally:
            for path, content in held.items():
                path.write_bytes(content)
