"""The door from Python: quantizing a loaded pipeline, loading an artifact."""

from __future__ import annotations

import pydoc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import harness
from harness.artifact.loaded import own_settings
from harness.artifact.quantize import quantize as stage
from harness.bits import BitSpec
from harness.errors import HarnessError, InfraError, UsageError
from harness.method import QuantReport
from harness.models.sample import sample_clip
from harness.models.table import SHAPES_GEN
from harness.models.trajectories import record_pool
from harness.plan.registry import load_method
from harness.plan.suites import load_suite
from harness.quant.layers.artifact import MANIFEST, WEIGHTS
from harness.quant.layers.layers import quantized_layers
from harness.spec import Prompt
from harness.testing.miniatures import TINY_GEN, cogvideox, wan
from tests.doubles import Toy, Wrong

PUBLIC = {
    *("Artifact", "HarnessError", "Run", "load_pipeline", "load_quantized", "load_run"),
    *("quantize", "run_experiment"),
}
TEXTS = ["a red circle moving left", "a blue square grows"]
QUICK = {"steps": 2}


class Empty(Toy):
    """Says that it quantized, and did nothing."""

    def quantize_(self, transformer, ctx):
        return QuantReport(execution="simulated", layers=())


def latents(pipeline) -> torch.Tensor:
    """Final latents of a short clip, which the denoiser alone decides."""
    return sample_clip(pipeline, TEXTS[1], TINY_GEN, seed=3).latents


def two_lines(error: pytest.ExceptionInfo[HarnessError]) -> bool:
    first, second = str(error.value).splitlines()
    return first.startswith("error: ") and second.startswith("hint: ")


@pytest.fixture(scope="module")
def pipeline():
    return cogvideox()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rtn", {}),
        ("quarot", {"samples": 4}),
        ("smoothquant", {"samples": 4}),
        ("gptq", {"samples": 4}),
    ],
)
def test_a_quantized_copy_is_saved_and_the_pipeline_stays_as_it_was(
    pipeline, tmp_path, method, options
):
    before, timesteps = latents(pipeline), pipeline.scheduler.timesteps.clone()
    told = []
    made = harness.quantize(
        pipeline, method, bits="w4a6", out=tmp_path / "deep" / "made", options=options,
        prompts=TEXTS, gen=QUICK, progress=lambda fraction, text: told.append(fraction),
    )  # fmt: skip
    assert torch.equal(pipeline.scheduler.timesteps, timesteps)
    assert not quantized_layers(pipeline.transformer)
    assert torch.equal(latents(pipeline), before)
    assert made.folder == tmp_path / "deep" / "made"
    assert {layer["w_bits"] for layer in made.report["layers"]} == {4.0}
    assert made.report["footprint"]["target_layers"] == len(made.report["layers"])
    assert made.report["calibration_clips"] == (0 if method == "rtn" else len(TEXTS))
    assert told == sorted(told)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["made"]
    assert not (made.folder / "pool").exists()
    fresh = harness.load_quantized(cogvideox(), str(made.folder))
    assert quantized_layers(fresh.transformer)
    assert not torch.equal(latents(fresh), before)


def test_in_place_the_pipeline_is_quantized_and_equals_what_is_loaded(tmp_path):
    worked = cogvideox()
    kept = worked.transformer
    made = harness.quantize(
        worked, "smoothquant", bits="w8a8", out=tmp_path / "made", options={"samples": 4},
        prompts=TEXTS, gen=QUICK, inplace=True,
    )  # fmt: skip
    assert worked.transformer is kept
    assert len(quantized_layers(kept)) == len(made.report["layers"])
    loaded = harness.load_quantized(cogvideox(), made.folder)
    assert torch.equal(latents(worked), latents(loaded))


def test_the_same_seed_gives_the_same_artifact_also_from_a_pipeline_that_is_trained(tmp_path):
    ready, trained = cogvideox(), cogvideox()
    trained.transformer.train().requires_grad_(True)
    for name, given in (("a", ready), ("b", trained)):
        harness.quantize(
            given, "gptq", bits="w4a4", out=tmp_path / name, options={"samples": 4},
            prompts=TEXTS, gen=QUICK, seed=1,
        )  # fmt: skip
    assert same_files(tmp_path / "a", tmp_path / "b")
    assert trained.transformer.training
    assert all(value.requires_grad for value in trained.transformer.parameters())


def test_a_calibrated_artifact_is_what_the_stages_of_a_run_make(pipeline, tmp_path):
    prompts = tuple(Prompt(id=f"p{i}", text=text) for i, text in enumerate(TEXTS))
    gen, silent = replace(own_settings(pipeline), steps=2), lambda *_: None
    for name in ("pool", "stage"):
        (tmp_path / name).mkdir()
    record_pool(pipeline, prompts, gen, seed=1, folder=tmp_path / "pool", progress=silent)
    stage(
        cogvideox(), load_method("gptq"), bits=BitSpec.parse("w4a6"), options={"samples": 4},
        family="cogvideox", gen=gen, pool=tmp_path / "pool", seed=1, out=tmp_path / "stage",
        progress=silent,
    )  # fmt: skip
    harness.quantize(
        pipeline, "gptq", bits="w4a6", out=tmp_path / "door", options={"samples": 4},
        prompts=TEXTS, gen=QUICK, seed=1,
    )  # fmt: skip
    assert same_files(tmp_path / "stage", tmp_path / "door")


def same_files(one: Path, other: Path) -> bool:
    return all((one / n).read_bytes() == (other / n).read_bytes() for n in (MANIFEST, WEIGHTS))


def test_a_method_may_be_a_name_a_class_an_object_or_lie_in_a_module(pipeline, tmp_path):
    from baselines.rtn import RTN

    for i, method in enumerate(("rtn", RTN, RTN(), "baselines.rtn:RTN")):
        harness.quantize(pipeline, method, bits="w4a6", out=tmp_path / str(i), gen=QUICK)
        assert same_files(tmp_path / "0", tmp_path / str(i))


def test_an_empty_folder_is_taken_and_prompts_may_be_a_file(pipeline, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "mine.txt").write_text("\n".join(TEXTS))
    made = harness.quantize(
        pipeline, "smoothquant", bits="w4a6", out=str(tmp_path / "made"), gen=QUICK,
        options={"samples": 4}, prompts=str(tmp_path / "mine.txt"), calibration_prompts=1,
    )  # fmt: skip
    assert made.report["calibration_clips"] == 1


WRONG = {
    "unknown method": ({"method": "rtm"}, "did you mean rtn"),
    "no method": ({"method": 3}, "3 is no method"),
    "unknown module": ({"method": "nowhere:X"}, "cannot be imported"),
    "bad bits": ({"bits": "4"}, "bits '4' cannot be read"),
    "bits that are a number": ({"bits": 4}, "bits '4' cannot be read"),
    "a width that does not exist": ({"bits": "w9a9"}, "weight width of 9"),
    "a width that the method lacks": ({"method": Toy, "bits": "w3a4"}, "makes no w3a4 of a cogvi"),
    "a reference": ({"method": "fp"}, "it leaves the model as it is"),
    "unknown option": ({"options": {"gruop": 4}}, "did you mean group"),
    "an option out of bounds": ({"options": {"group": -1}}, "out of range"),
    "unknown setting": ({"gen": {"stepz": 2}}, "did you mean steps"),
    "a setting of the loaded pipeline": ({"gen": {"dtype": "float16"}}, "'dtype' is unknown"),
    "a setting of another type": ({"gen": {"steps": "2"}}, "gen.steps = '2'"),
    "a setting out of bounds": ({"gen": {"steps": 0}}, "gen.steps = 0"),
    "a clip that cannot be made": ({"gen": {"frames": 10}}, "cannot make clips of 10 frames"),
    "a shift that is not read": ({"gen": {"flow_shift": 3.0}}, "has no effect on a CogVideoXDDIM"),
    "a negative prompt that is not read": (
        {"gen": {"negative_prompt": "grey", "guidance": 1}},
        "reads no negative prompt",
    ),
    "unknown suite": ({"prompts": "calib-generel"}, "did you mean calib-general"),
    "an evaluation suite": ({"prompts": "shapes-eval"}, "is for eval, not for calibration"),
    "no prompts": ({"prompts": []}, "there are no calibration prompts"),
    "empty prompts": ({"prompts": ["", " "]}, "there are no calibration prompts"),
    "a prompt that is no text": ({"prompts": ["a", 3]}, "calibration prompt 3 is no text"),
    "no number of prompts": ({"calibration_prompts": 0}, "calibration_prompts is 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_two_lines_and_leaves_nothing(pipeline, tmp_path, name):
    given, words = WRONG[name]
    calibrated = bool({"prompts", "calibration_prompts"} & set(given))
    wanted = {"method": "gptq" if calibrated else "rtn", "bits": "w4a6", "prompts": TEXTS, **given}
    with pytest.raises(HarnessError) as caught:
        harness.quantize(pipeline, wanted.pop("method"), out=tmp_path / "a" / "made", **wanted)
    assert words in str(caught.value)
    assert two_lines(caught)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "error", "words"),
    [
        (Wrong, ZeroDivisionError, "in a method"),
        (Empty, HarnessError, "is a target but is not quantized"),
    ],
)
def test_an_error_on_the_way_leaves_no_folder(pipeline, tmp_path, method, error, words):
    before = latents(pipeline)
    with pytest.raises(error, match=words):
        harness.quantize(pipeline, method, bits="w4a4", out=tmp_path / "a" / "made", gen=QUICK)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(latents(pipeline), before)


def test_a_folder_that_holds_something_is_refused_and_kept(pipeline, tmp_path):
    (tmp_path / "note").write_text("mine")
    for out, words in ((tmp_path, "holds something"), (tmp_path / "note" / "x", "lies below the")):
        with pytest.raises(UsageError, match=words) as caught:
            harness.quantize(pipeline, "rtn", bits="w4a6", out=out)
        assert two_lines(caught)
    assert [p.name for p in tmp_path.iterdir()] == ["note"]


def test_a_folder_that_is_filled_meanwhile_is_not_lost(pipeline, tmp_path):
    def fill(fraction: float, text: str) -> None:
        (tmp_path / "made").mkdir(exist_ok=True)
        (tmp_path / "made" / "note").write_text("mine")

    with pytest.raises(InfraError, match="cannot be written") as caught:
        harness.quantize(pipeline, "rtn", bits="w4a6", out=tmp_path / "made", progress=fill)
    assert two_lines(caught)
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["note"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write")
def test_a_disk_that_cannot_be_written_is_two_lines(pipeline):
    with pytest.raises(InfraError, match="cannot be written") as caught:
        harness.quantize(pipeline, "rtn", bits="w4a6", out="/proc/made")
    assert two_lines(caught)


def test_what_is_no_full_precision_pipeline_is_refused_in_two_lines(tmp_path):
    given = cogvideox()
    harness.quantize(given, "rtn", bits="w4a6", out=tmp_path / "a", gen=QUICK, inplace=True)
    moved = cogvideox()
    moved.transformer._hf_hook = object()
    unbounded = wan(experts=2)
    unbounded.register_to_config(boundary_ratio=None)
    cases = (
        (given, "is quantized already"),
        (SimpleNamespace(unet=1), "has no transformer to quantize"),
        (SimpleNamespace(transformer=torch.nn.Linear(2, 2)), "Linear"),
        (unbounded, "has two denoisers and boundary_ratio None"),
        (moved, r"is moved between devices|are held by enable_sequential_cpu_offload"),
    )
    for pipeline, words in cases:
        calls = (
            lambda p=pipeline: harness.quantize(p, "rtn", bits="w4a6", out=tmp_path / "b"),
            lambda p=pipeline: harness.load_quantized(p, tmp_path / "a"),
        )
        for call in calls:
            with pytest.raises(HarnessError, match=words) as caught:
                call()
            assert two_lines(caught)
    image = cogvideox()
    image.__class__ = type("CogVideoXImageToVideoPipeline", (type(image),), {})
    with pytest.raises(HarnessError, match="it is called with an image") as caught:
        harness.quantize(image, "rtn", bits="w4a6", out=tmp_path / "b")
    assert two_lines(caught)
    with pytest.raises(HarnessError, match="is not an artifact") as caught:
        harness.load_quantized(cogvideox(), tmp_path)
    assert two_lines(caught)


def test_a_loaded_pipeline_has_the_settings_of_its_configs_whatever_it_is_called():
    pipeline = wan()
    pipeline.register_to_config(_name_or_path="Wan-AI/Wan2.2-TI2V-5B-Diffusers")
    assert (own_settings(pipeline).frames, own_settings(pipeline).negative_prompt) == (81, "")
    pipeline.transformer.register_to_config(in_channels=48, num_attention_heads=24)
    pipeline.vae.register_to_config(z_dim=48)
    found = own_settings(pipeline)
    assert (found.frames, found.fps, found.dtype) == (121, 24, "float32")
    assert found.flow_shift == 5.0


@pytest.fixture(scope="module")
def shapes():
    return harness.load_pipeline("shapes", device="cpu")


def test_a_bundled_model_is_loaded_by_name_and_known_again(shapes):
    assert own_settings(shapes) == SHAPES_GEN
    for model, options in (("shapez", {}), ("shapes", {"dtype": "float61"})):
        with pytest.raises(UsageError, match="did you mean") as caught:
            harness.load_pipeline(model, **options)
        assert two_lines(caught)


def test_what_is_not_said_is_what_a_run_would_take(shapes, tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr("harness.artifact.loaded.working_pipeline", lambda *_, **__: None)
    monkeypatch.setattr(
        "harness.artifact.loaded.record_and_quantize", lambda *_, **given: told.update(given)
    )
    harness.quantize(shapes, "gptq", bits="w4a6", out=tmp_path / "made")
    assert told["gen"] == SHAPES_GEN
    assert told["prompts"] == load_suite("shapes-calib", limit=10, role="calibration").prompts
    harness.quantize(shapes, "gptq", bits="w4a6", out=tmp_path / "b", prompts=["a"] * 12)
    assert len(told["prompts"]) == 12


def test_importing_the_package_and_listing_its_names_costs_no_library():
    code = (
        "import sys, harness; dir(harness); harness.__all__;"
        "sys.exit(', '.join({'torch', 'pandas', 'diffusers', 'pydantic'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_shows_every_public_name_with_what_it_is():
    assert set(harness.__all__) == PUBLIC
    assert set(dir(harness)) >= PUBLIC
    text = pydoc.plain(pydoc.render_doc(harness))
    for name in PUBLIC:
        assert name in text
        assert pydoc.getdoc(getattr(harness, name)).splitlines()[0] in text
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = harness.quantise
