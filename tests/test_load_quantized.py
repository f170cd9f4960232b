"""``load_quantized`` changes nothing unless it succeeds, and says in two lines what to do."""

from __future__ import annotations

import copy
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import harness
from harness.errors import HarnessError
from harness.models.sample import denoise
from harness.quant.layers.artifact import MANIFEST, WEIGHTS
from harness.quant.layers.layers import quantized_layers
from harness.testing.miniatures import TINY_GEN, cogvideox, wan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

QUICK = {"height": 32, "width": 32, "frames": 9, "steps": 2, "max_text_tokens": 8}


def latents(pipeline: Any) -> Tensor:
    found: list[Tensor] = []
    denoise(pipeline, "a red circle", TINY_GEN, seed=0, on_step=lambda _, x: found.append(x))
    return found[-1]


def sampled(pipeline: Any) -> Tensor:
    """Latents of the pipeline itself, which takes a compiled denoiser."""
    found: Tensor = pipeline(
        "a red circle", height=32, width=32, num_frames=9, num_inference_steps=2,
        max_sequence_length=8, output_type="latent", generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    return found


def state(transformer: nn.Module) -> dict[str, tuple[type, Tensor | None]]:
    """Modules by class and tensors by value, and what was attached."""
    modules = {name: (type(module), None) for name, module in transformer.named_modules()}
    tensors = {f"={n}": (type(v), v.clone()) for n, v in transformer.state_dict().items()}
    return modules | tensors


def unchanged(before: dict[str, Any], transformer: nn.Module) -> bool:
    now = state(transformer)
    return now.keys() == before.keys() and all(
        now[name][0] is kind and (value is None or torch.equal(now[name][1], value))
        for name, (kind, value) in before.items()
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "artifact"
    folder: Path = harness.quantize(cogvideox(), "rtn", bits="w4a6", out=out, gen=QUICK).folder
    return folder


@pytest.fixture(scope="module")
def wanted(made: Path) -> Tensor:
    return latents(harness.load_quantized(cogvideox(), made))


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) - 100])


def cut_in_the_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])


def no_tensors(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n")


def no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def manifest_of_another(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"schema": 1}')


def tensors_changed(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def step_not_finite(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["transformer_blocks.0.attn1.to_q.scale"][3] = torch.nan

    tensors_changed(folder, change)


def kept_not_finite(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["proj_out.bias"] = torch.full_like(tensors["proj_out.bias"], torch.inf)

    tensors_changed(folder, change)


def layer_without_codes(folder: Path) -> None:
    tensors_changed(folder, lambda t: t.pop("transformer_blocks.1.ff.net.2.codes"))  # type: ignore[arg-type, return-value]


def too_few_codes(folder: Path) -> None:
    name = "transformer_blocks.1.ff.net.2.codes"
    tensors_changed(folder, lambda t: t.update({name: t[name][:-1].clone()}))


def last_kept_absent(folder: Path) -> None:
    tensors_changed(folder, lambda t: t.pop("proj_out.weight"))  # type: ignore[arg-type, return-value]


def other_patch(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["model_config"]["spatial_interpolation_scale"] = 2.5
    (folder / MANIFEST).write_text(json.dumps(manifest))


def unknown_kind(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["layers"]["transformer_blocks.1.ff.net.2"]["kind"] = "ternary"
    (folder / MANIFEST).write_text(json.dumps(manifest))


DAMAGE: dict[Callable[[Path], None], str] = {
    cut: "bytes, its header says",
    cut_in_the_header: "is cut or no such file",
    pointer: "is cut or no such file",
    no_tensors: f"lacks '{WEIGHTS}'",
    no_manifest: "is not an artifact",
    manifest_of_another: "is not an artifact",
    step_not_finite: "a step is not finite in 'transformer_blocks.0.attn1.to_q.scale'",
    kept_not_finite: "a value is not finite in 'proj_out.bias'",
    layer_without_codes: "is damaged at layer 'transformer_blocks.1.ff.net.2'",
    too_few_codes: "is damaged at layer 'transformer_blocks.1.ff.net.2'",
    last_kept_absent: "has no tensor 'proj_out.weight'",
    other_patch: "has spatial_interpolation_scale 1.875, the artifact's has 2.5",
    unknown_kind: "unknown layer kind 'ternary'",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_artifact_is_named_and_the_pipeline_is_as_it_was(
    damage: Callable[[Path], None], made: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(made, tmp_path / "copy")
    damage(folder)
    pipeline = cogvideox()
    before = state(pipeline.transformer)
    with pytest.raises(HarnessError) as caught:
        harness.load_quantized(pipeline, folder)
    assert DAMAGE[damage] in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
    assert unchanged(before, pipeline.transformer)
    assert "save_pretrained" not in vars(pipeline.transformer)


def test_a_moved_folder_loads(made: Path, wanted: Tensor, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "a" / "moved")
    assert torch.equal(latents(harness.load_quantized(cogvideox(), folder)), wanted)


def test_another_model_is_refused_and_left_as_it_was(made: Path) -> None:
    wider, halved = cogvideox(), cogvideox()
    config = {**wider.transformer.config, "num_layers": 3}
    wider.register_modules(transformer=type(wider.transformer).from_config(config))
    halved.transformer.bfloat16()
    cases = (
        (wan(), "is a WanTransformer3DModel, the artifact is of a CogVideoXTransformer3DModel"),
        (wider, "has num_layers 3, the artifact's has 2"),
        (halved, "is of a model in float32, this pipeline is in bfloat16"),
    )
    for pipeline, words in cases:
        before = state(pipeline.transformer)
        with pytest.raises(HarnessError, match=words) as caught:
            harness.load_quantized(pipeline, made)
        assert len(str(caught.value).splitlines()) == 2
        assert unchanged(before, pipeline.transformer)


def test_an_artifact_is_not_loaded_twice(made: Path, wanted: Tensor) -> None:
    pipeline = harness.load_quantized(cogvideox(), made)
    with pytest.raises(HarnessError, match="is quantized already"):
        harness.load_quantized(pipeline, made)
    assert torch.equal(latents(pipeline), wanted)


def test_a_pipeline_that_holds_an_artifact_refuses_to_be_saved(made: Path, tmp_path: Path) -> None:
    inplace = cogvideox()
    harness.quantize(inplace, "rtn", bits="w4a6", out=tmp_path / "made", inplace=True, gen=QUICK)
    for pipeline in (harness.load_quantized(cogvideox(), made), inplace):
        copied = copy.copy(pipeline)
        copied.register_modules(transformer=copy.deepcopy(pipeline.transformer))
        for holder in (pipeline, pipeline.transformer, copied, copied.transformer):
            with pytest.raises(HarnessError, match="cannot write quantized layers") as caught:
                holder.save_pretrained(tmp_path / "saved")
            assert "harness.load_quantized" in caught.value.hint
            assert len(str(caught.value).splitlines()) == 2
    assert not (tmp_path / "saved").exists()


def test_a_compiled_denoiser_is_replaced_inside_its_wrapper(made: Path) -> None:
    pipeline = cogvideox()
    exact, wanted = sampled(pipeline), sampled(harness.load_quantized(cogvideox(), made))
    pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")
    assert torch.allclose(sampled(pipeline), exact, atol=1e-4)  # compiled for the exact weights
    harness.load_quantized(pipeline, made)
    assert quantized_layers(pipeline.transformer._orig_mod)
    assert not torch.allclose(exact, wanted, atol=1e-2)
    assert torch.allclose(sampled(pipeline), wanted, atol=1e-4)
    with pytest.raises(HarnessError, match="cannot write quantized layers"):
        pipeline.save_pretrained("nowhere")


def test_a_compiled_denoiser_is_not_quantized(tmp_path: Path) -> None:
    pipeline = cogvideox()
    pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")
    with pytest.raises(HarnessError, match="is compiled"):
        harness.quantize(pipeline, "rtn", bits="w4a6", out=tmp_path / "made")


def test_a_denoiser_that_is_moved_as_a_whole_is_replaced(made: Path, wanted: Tensor) -> None:
    from accelerate import cpu_offload_with_hook

    pipeline = cogvideox()
    cpu_offload_with_hook(pipeline.transformer, "cpu")
    harness.load_quantized(pipeline, made)
    assert torch.equal(latents(pipeline), wanted)


def sequential(pipeline: Any) -> None:
    from accelerate import cpu_offload

    cpu_offload(pipeline.transformer, "cpu")


def grouped(pipeline: Any) -> None:
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        pipeline.transformer, onload_device=torch.device("cpu"), offload_type="block_level",
        num_blocks_per_group=1,
    )  # fmt: skip


def cast_by_layer(pipeline: Any) -> None:
    pipeline.transformer.enable_layerwise_casting(
        storage_dtype=torch.bfloat16, compute_dtype=torch.float32
    )


def adapted(pipeline: Any) -> None:
    pipeline.transformer.peft_config = {"default": object()}


HELD: dict[Callable[[Any], None], tuple[str, str]] = {
    sequential: ("enable_sequential_cpu_offload", "offload or cast afterwards"),
    grouped: ("enable_group_offload", "offload or cast afterwards"),
    cast_by_layer: ("enable_layerwise_casting", "offload or cast afterwards"),
    adapted: ("has adapters", "unload_lora_weights"),
}


@pytest.mark.parametrize("hold", HELD, ids=lambda hold: hold.__name__)
def test_weights_that_something_else_holds_are_refused_with_what_to_do(
    hold: Callable[[Any], None], made: Path
) -> None:
    pipeline = cogvideox()
    hold(pipeline)
    with pytest.raises(HarnessError, match=HELD[hold][0]) as caught:
        harness.load_quantized(pipeline, made)
    assert HELD[hold][1] in caught.value.hint
    assert len(str(caught.value).splitlines()) == 2
    assert not quantized_layers(pipeline.transformer)


@pytest.mark.parametrize("hold", [sequential, grouped], ids=lambda hold: hold.__name__)
def test_what_was_loaded_can_be_offloaded_afterwards(
    hold: Callable[[Any], None], made: Path, wanted: Tensor
) -> None:
    pipeline = harness.load_quantized(cogvideox(), made)
    hold(pipeline)
    assert torch.equal(latents(pipeline), wanted)
