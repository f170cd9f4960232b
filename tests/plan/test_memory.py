"""The estimates of harness.plan.memory against what models of real width hold."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.measure.traced import traced_peak
from harness.models.families import family_by_name
from harness.models.offload import BLOCKS, COMPONENTS, NONE
from harness.models.parts import Part
from harness.models.sample import denoise
from harness.models.shape import DenoiserShape, denoiser_shape
from harness.plan.memory import (
    DENOISER,
    HESSIANS,
    LAYERS,
    TRAINING,
    Sizes,
    activation_bytes,
    calibration_bytes,
    decoding_bytes,
    on_host,
    peaks,
    sizes_of,
)
from harness.plan.memory_facts import MARGIN, PROCESS_BYTES
from harness.spec import GenSpec
from harness.store.provenance import cuda_names
from harness.testing import miniatures

HERE = Path(__file__).parent
GEN = GenSpec(height=480, width=720, frames=49, fps=8, steps=50, guidance=6.0, dtype="bfloat16")
NAMES = ("cogvideox", "hunyuanvideo", "hunyuanvideo15", "wan", "ltx")


@cache
def cogvideox() -> Sizes:
    """CogVideoX-5B."""
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel

    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(num_layers=42, num_attention_heads=48)
        vae = AutoencoderKLCogVideoX()
    parts = [part("transformer", transformer), part("vae", vae)]
    text = Part(
        name="text_encoder", kind="T5EncoderModel", parameters=4_762_310_656,
        config={"d_model": 4096, "vocab_size": 32128},
    )  # fmt: skip
    found = sizes_of("cogvideox", GEN, [*parts, text])
    assert found is not None
    return found


def part(name: str, module: Any) -> Part:
    count = sum(p.numel() for p in module.parameters())
    return Part(name=name, kind=type(module).__name__, parameters=count, config=dict(module.config))


def shape_of(name: str) -> tuple[Any, DenoiserShape, GenSpec]:
    pipeline = getattr(miniatures, name)()
    gen = miniatures.TINY_GEN
    config = dict(pipeline.transformer.config)
    found = denoiser_shape(name, config, dict(pipeline.vae.config), gen)
    assert found is not None
    return pipeline, found, gen


@pytest.mark.parametrize("name", NAMES)
def test_tokens_rows_and_calls_are_those_that_the_blocks_see(name: str):
    pipeline, shape, gen = shape_of(name)
    family = family_by_name(name)
    _, block = family.blocks(pipeline.transformer)[0]
    seen: list[tuple[int, int]] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        streams = dict(zip(("hidden_states", "encoder_hidden_states"), args, strict=False)) | kwargs
        tokens = sum(streams[s].shape[1] for s in family.streams)
        seen.append((streams[family.video_stream].shape[0], tokens))

    block.register_forward_pre_hook(see, with_kwargs=True)
    denoise(pipeline, "a red circle", gen, seed=0, on_step=lambda step, latents: None)
    assert set(seen) == {(shape.rows, shape.tokens)}
    assert len(seen) == gen.steps * shape.calls


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_the_blocks_are_those_of_their_linears(name: str):
    pipeline, shape, _ = shape_of(name)
    blocks = [block for _, block in family_by_name(name).blocks(pipeline.transformer)]
    counts = [
        sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Linear))
        for block in blocks
    ]
    assert shape.blocks == len(blocks)
    assert shape.block_weights == max(counts)
    assert shape.all_block_weights == sum(counts)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_of_the_largest_block_are_those_that_second_moments_are_taken_of(name: str):
    pipeline, shape, _ = shape_of(name)
    family = family_by_name(name)
    widths = []
    for _, block in family.blocks(pipeline.transformer):
        groups = family.groups(block)
        read = [n for group in groups for n in group.observed]
        widths.append(sorted(block.get_submodule(n).in_features for n in read))
    assert sorted(shape.inputs) in widths


def test_a_family_without_formula_and_a_config_without_its_keys_have_no_shape():
    assert denoiser_shape("mine", {}, {}, GEN) is None
    assert denoiser_shape("cogvideox", {"num_layers": 2}, {}, GEN) is None


def meta(cls: Any, dtype: torch.dtype, **config: Any) -> Any:
    with torch.device("meta"):
        return cls(**config).to(dtype)


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


def call_of(name: str, dtype: torch.dtype, model: str) -> tuple[Any, dict[str, Any], GenSpec]:
    """A denoiser of real width and two blocks, and a call of it at the size it is run at."""
    import diffusers

    def e(*shape: int) -> Tensor:
        return empty(*shape, dtype=dtype)

    word = str(dtype).removeprefix("torch.")
    common: dict[str, Any] = {"fps": 8, "steps": 50, "dtype": word}
    if model == "1.5-5B":
        denoiser = meta(
            diffusers.CogVideoXTransformer3DModel, dtype, num_layers=2, num_attention_heads=48,
            use_rotary_positional_embeddings=True, patch_size_t=2, patch_bias=False,
        )  # fmt: skip
        rope = (empty(11 * 48 * 85, 64, dtype=torch.float32),) * 2
        call = {
            "hidden_states": e(2, 22, 16, 96, 170), "encoder_hidden_states": e(2, 226, 4096),
            "timestep": e(2), "image_rotary_emb": rope,
        }  # fmt: skip
        return denoiser, call, GenSpec(height=768, width=1360, frames=81, guidance=6.0, **common)
    if name == "cogvideox":
        heads, rotary = {"2B": (30, False), "5B": (48, True)}[model]
        denoiser = meta(
            diffusers.CogVideoXTransformer3DModel, dtype, num_layers=2, num_attention_heads=heads,
            use_rotary_positional_embeddings=rotary,
        )  # fmt: skip
        rope = (empty(17550, 64, dtype=torch.float32),) * 2 if rotary else None
        call = {
            "hidden_states": e(2, 13, 16, 60, 90), "encoder_hidden_states": e(2, 226, 4096),
            "timestep": e(2), "image_rotary_emb": rope,
        }  # fmt: skip
        return denoiser, call, GenSpec(height=480, width=720, frames=49, guidance=6.0, **common)
    if name == "wan":
        heads, hidden = {"1.3B": (12, 8960), "14B": (40, 13824)}[model]
        denoiser = meta(
            diffusers.WanTransformer3DModel, dtype, num_layers=2, num_attention_heads=heads,
            ffn_dim=hidden,
        )  # fmt: skip
        call = {
            "hidden_states": e(1, 16, 21, 60, 104), "encoder_hidden_states": e(1, 512, 4096),
            "timestep": e(1),
        }  # fmt: skip
        gen = GenSpec(height=480, width=832, frames=81, guidance=5.0, max_text_tokens=512, **common)
        return denoiser, call, gen
    if name == "hunyuanvideo":
        denoiser = meta(
            diffusers.HunyuanVideoTransformer3DModel, dtype, num_layers=1, num_single_layers=1
        )
        call = {
            "hidden_states": e(1, 16, 33, 90, 160), "encoder_hidden_states": e(1, 256, 4096),
            "encoder_attention_mask": empty(1, 256, dtype=torch.long),
            "pooled_projections": e(1, 768), "guidance": e(1), "timestep": e(1),
        }  # fmt: skip
        gen = GenSpec(
            height=720, width=1280, frames=129, guidance=6.0, max_text_tokens=256, **common
        )
        return denoiser, call, gen
    denoiser = meta(diffusers.LTXVideoTransformer3DModel, dtype, num_layers=2)
    call = {
        "hidden_states": e(2, 7392, 128), "encoder_hidden_states": e(2, 128, 4096),
        "encoder_attention_mask": e(2, 128), "timestep": e(2), "num_frames": 21, "height": 16,
        "width": 22, "rope_interpolation_scale": (8 / 25, 32, 32),
    }  # fmt: skip
    gen = GenSpec(height=512, width=704, frames=161, guidance=3.0, max_text_tokens=128, **common)
    return denoiser, call, gen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("name", "model"),
    [("cogvideox", "2B"), ("cogvideox", "5B"), ("cogvideox", "1.5-5B"), ("wan", "1.3B"),
     ("wan", "14B"), ("hunyuanvideo", ""), ("ltx", "")],
)  # fmt: skip
def test_a_step_at_real_size_holds_what_is_estimated(name: str, model: str, dtype: torch.dtype):
    import diffusers

    decoders = {
        "cogvideox": diffusers.AutoencoderKLCogVideoX,
        "wan": diffusers.AutoencoderKLWan,
        "hunyuanvideo": diffusers.AutoencoderKLHunyuanVideo,
        "ltx": diffusers.AutoencoderKLLTXVideo,
    }
    denoiser, call, gen = call_of(name, dtype, model)
    with torch.device("meta"):
        vae = decoders[name]()
    sizes = sizes_of(name, gen, [part("transformer", denoiser), part("vae", vae)])
    assert sizes is not None
    traced = traced_peak(lambda: denoiser(**call, return_dict=False))
    assert activation_bytes(sizes) == pytest.approx(traced, rel=0.1)


def test_cogvideox15_pads_its_latent_frames_to_its_patch():
    _, call, gen = call_of("cogvideox", torch.bfloat16, "1.5-5B")
    latent = call["hidden_states"].shape
    config = {**dict(cogvideox().denoisers[0].config), "patch_size_t": 2}
    shape = denoiser_shape("cogvideox", config, cogvideox().decoder.config, gen)
    assert shape is not None
    assert shape.video_tokens == 11 * 48 * 85
    assert shape.latent == latent[1:].numel()


@pytest.mark.parametrize(
    ("name", "latent", "size", "dtype"),
    [
        ("CogVideoX", (1, 16, 5, 30, 45), (17, 240, 360), "bfloat16"),
        ("HunyuanVideo", (1, 16, 9, 45, 80), (33, 360, 640), "float16"),
        ("HunyuanVideo15", (1, 32, 5, 16, 16), (17, 256, 256), "bfloat16"),
        ("Wan", (1, 16, 3, 60, 104), (9, 480, 832), "float32"),
        ("LTXVideo", (1, 128, 6, 16, 22), (41, 512, 704), "bfloat16"),
    ],
)
def test_decoding_holds_what_is_estimated(
    name: str, latent: tuple[int, ...], size: tuple[int, int, int], dtype: str
):
    import diffusers

    kind = getattr(torch, dtype)
    vae = meta(getattr(diffusers, f"AutoencoderKL{name}"), kind).eval()
    frames, height, width = size
    gen = GenSpec(
        height=height, width=width, frames=frames, fps=8, steps=1, guidance=1.0, dtype=dtype
    )
    shape = cogvideox().shape
    sizes = Sizes(family="cogvideox", gen=gen, parts=(part("vae", vae),), shape=shape)
    z = empty(*latent, dtype=kind)
    traced = traced_peak(lambda: vae.decode(z, return_dict=False))
    assert decoding_bytes(sizes, tiled=False) == pytest.approx(traced, rel=0.1)


@pytest.mark.slow
def test_a_real_width_block_holds_on_a_processor_what_is_estimated():
    # a process of its own: memory that others freed stays resident and would hide the peak
    out = subprocess.run(
        [sys.executable, str(HERE / "block_memory.py"), "cpu", "1024"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(out.stdout)
    assert found["measured"] == pytest.approx(found["estimate"], rel=MARGIN)


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_names(), reason="there is no CUDA device")
def test_a_real_width_block_holds_on_a_gpu_what_is_estimated():
    out = subprocess.run(
        [sys.executable, str(HERE / "block_memory.py"), "cuda", "17776"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(out.stdout)
    assert found["measured"] == pytest.approx(found["estimate"], rel=MARGIN)


def test_offloading_leaves_less_on_the_device_and_more_on_the_host():
    sizes = cogvideox()
    none, components, blocks = (
        {p.stage: p for p in peaks(sizes, offload=o, kinds=(HESSIANS,), w_bits=4)}
        for o in (NONE, COMPONENTS, BLOCKS)
    )
    weights = sizes.bytes_of(sizes.denoisers[0])
    step = activation_bytes(sizes)
    assert none["denoise"].device == weights + step
    assert components["denoise"].device == none["denoise"].device  # there is one denoiser
    assert blocks["denoise"].device < step + weights / 20  # one of 42 blocks, and what is outside
    assert blocks["denoise"].host == PROCESS_BYTES + weights
    assert none["denoise"].host == PROCESS_BYTES
    assert blocks["encode text"].device == 2 * 4096 * 32128  # the embedding of words


def test_of_two_denoisers_one_is_on_the_device_where_components_are_offloaded():
    one = cogvideox()
    second = Part(**{**vars_of(one.denoisers[0]), "name": "transformer_2"})
    two = sizes_of("cogvideox", GEN, [*one.parts, second])
    assert two is not None
    weights, step = one.bytes_of(second), activation_bytes(one)
    assert peaks(two)[1].device == 2 * weights + step
    assert peaks(two, offload=COMPONENTS)[1].device == weights + step


def vars_of(found: Part) -> dict[str, Any]:
    return {"kind": found.kind, "parameters": found.parameters, "config": found.config}


def test_methods_that_train_hold_more_than_those_that_count_and_those_that_round():
    sizes = cogvideox()
    rounding, counting, training = (
        calibration_bytes(sizes, kind) for kind in (LAYERS, HESSIANS, TRAINING)
    )
    assert rounding < counting < training
    # second moments: 12 bytes a value, of five inputs of width 3072 and 4x that, two of width 512
    assert counting > 12 * (3 * 3072**2 + (4 * 3072) ** 2 + 2 * 512**2)
    # a copy of the denoiser and the input of each of its 42 blocks, in float32
    denoiser = calibration_bytes(sizes, DENOISER)
    assert denoiser > 4 * (sizes.denoisers[0].parameters + 42 * 17776 * 3072)
    assert denoiser > training
    # each kind is a stage of its own, and no other
    stages = [p.stage for p in peaks(sizes, kinds=(TRAINING,))]
    assert [s for s in stages if s.startswith("quantize")] == ["quantize (block training)"]


def test_tiling_bounds_the_decoder_by_a_tile():
    sizes = cogvideox()
    whole, tiled = (decoding_bytes(sizes, tiled=t) for t in (False, True))
    assert tiled < whole / 3
    assert peaks(sizes, tiled=True)[-1].stage == "decode, tiled"


def test_on_a_processor_every_worker_holds_weights_activations_and_itself():
    found = peaks(cogvideox())
    for peak, host in zip(found, on_host(found, workers=3), strict=True):
        assert host.device == host.host == 3 * (peak.device + PROCESS_BYTES)
