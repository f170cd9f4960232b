"""A model that cannot be run is refused in two lines by `harness run`, before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.cli.main import main
from harness.models import hub, table
from harness.models.model_files import FolderFiles
from harness.run.executors.local import LocalExecutor
from tests.models.small_folders import KNOWN, edit_json, write_json, write_known, write_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the run started, which must stay empty."""
    names: list[str] = []

    def start(self: object, task: object, **_: object) -> None:
        del self
        names.append(str(task))
        raise AssertionError("a worker was started")

    monkeypatch.setattr(LocalExecutor, "start", start)
    return names


def refusal(capsys: pytest.CaptureFixture[str], model: Path | str, *more: str) -> tuple[int, str]:
    """Exit code and the two lines of `harness run`."""
    with pytest.raises(SystemExit) as caught:
        main(["run", "--model", str(model), "--methods", "rtn", *more])
    error = capsys.readouterr().err
    lines = error.strip().splitlines()
    assert len(lines) == 2, error
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    assert "bug" not in error
    return int(caught.value.code or 0), error


def becomes(name: str, **values: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder, name, **values)


def holds(name: str, content: bytes | str) -> Callable[[Path], None]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw) and None


def lacks(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def cut(name: str, length: int) -> Callable[[Path], None]:
    return lambda folder: (
        (folder / name).write_bytes((folder / name).read_bytes()[:length]) and None
    )


def sharded(
    *, lost: bool = False, other: bool = False, empty: bool = False
) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        names = {"a": "s-1.safetensors", "b": "s-2.safetensors"}
        for tensor, name in names.items():
            write_weights(folder / "transformer" / name, tensor="z" if other else tensor)
        if lost:
            (folder / "transformer/s-2.safetensors").unlink()
        write_json(folder, INDEX, {"weight_map": {} if empty else names})

    return change


def pipeline(kind: str) -> Callable[[Path], None]:
    return becomes("model_index.json", _class_name=kind)


QUANTIZED = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
BROKEN: dict[str, tuple[str, Callable[[Path], object], str, str]] = {
    "image to video": (
        "cogvideox-5b", pipeline("CogVideoXImageToVideoPipeline"),
        "is a CogVideoXImageToVideoPipeline: it is called with an image", "cogvideox-5b",
    ),
    "video to video": (
        "wan2.1-1.3b", pipeline("WanVideoToVideoPipeline"), "it is called with a video",
        "wan2.1-14b",
    ),
    "control": (
        "cogvideox-5b", pipeline("CogVideoXFunControlPipeline"), "with a control video", "5b"
    ),
    "inpainting": (
        "wan2.1-14b", pipeline("WanVACEPipeline"), "with a control video", "WanPipeline",
    ),
    "frames to come": (
        "hunyuanvideo", pipeline("HunyuanVideoFramepackPipeline"), "with an image", "hunyuanvideo"
    ),
    "conditions": ("ltx-video", pipeline("LTXConditionPipeline"), "with images", "LTXPipeline"),
    "a pipeline of one's own": (
        "wan2.1-14b", pipeline("MyWanPipeline"), "no text-to-video pipeline known", "WanPipeline"
    ),
    "a pipeline with code": (
        "wan2.1-14b", pipeline(["my_file", "Mine"]), "['my_file', 'Mine']", "WanPipeline",
    ),
    "the pipeline of another family": (
        "latte", pipeline("WanPipeline"), "is a WanPipeline", "latte",
    ),
    "an image behind a text pipeline": (
        "wan2.1-14b", becomes("transformer/config.json", in_channels=36),
        "reads 36 channels and its VAE has 16", "wan2.1-14b",
    ),
    "guidance that is not embedded": (
        "hunyuanvideo", becomes("transformer/config.json", guidance_embeds=False),
        "takes no guidance scale", "distilled",
    ),
    "no denoiser": (
        "latte", becomes("model_index.json", transformer=[None, None]), "without a 'transformer'",
        "harness list models",
    ),
    "no text encoder": (
        "latte", becomes("model_index.json", text_encoder=[None, None]), "has no 'text_encoder'",
        "whole pipeline",
    ),
    "two denoisers": (
        "wan2.1-14b",
        lambda folder: (
            edit_json(
                folder, "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"]
            ),
            write_json(folder, "transformer_2/config.json", {}),
        ),
        "nothing says when each serves", "boundary_ratio",
    ),
    "a quantized denoiser": (
        "cogvideox-5b", becomes("transformer/config.json", **QUANTIZED),
        "'transformer' of model", "full precision",
    ),
    "a quantized text encoder": (
        "cogvideox-5b", becomes("text_encoder/config.json", **QUANTIZED),
        "is quantized already (bitsandbytes", "full precision",
    ),
    "fp8 storage": (
        "wan2.1-14b", lambda folder: write_weights(folder / WEIGHTS, "F8_E4M3"),
        "stored as F8_E4M3", "full precision",
    ),
    "int8 storage of the text encoder": (
        "wan2.1-14b", lambda folder: write_weights(folder / "text_encoder/model.safetensors", "I8"),
        "'text_encoder' of model", "full precision",
    ),
    "a pointer of git-lfs": (
        "latte", holds(WEIGHTS, POINTER), "is a pointer of git-lfs", "lfs pull",
    ),
    "a pointer in place of a tokenizer": (
        "latte", holds("tokenizer/spiece.model", POINTER), "spiece.model' is a pointer", "lfs pull"
    ),
    "a pointer in place of an index": (
        "latte", holds("model_index.json", POINTER), "is a pointer of git-lfs", "lfs pull"
    ),
    "a header cut in its length": ("latte", cut(WEIGHTS, 5), "it has 5 bytes", "again"),
    "an empty weight file": ("latte", holds(WEIGHTS, b""), "it has 0 bytes", "again"),
    "a cut header": ("latte", cut(WEIGHTS, 40), "is cut: it has 40 bytes", "again"),
    "a cut file": ("latte", cut(WEIGHTS, 130), "is cut: it has 130 bytes of", "again"),
    "a file of the VAE that is cut": (
        "latte", cut("vae/diffusion_pytorch_model.safetensors", 130), "vae/diffusion", "again"
    ),
    "a file that goes on": (
        "latte",
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"xyz"),
        "3 bytes behind its last tensor", "again",
    ),
    "a page in place of weights": (
        "latte", holds(WEIGHTS, "<!doctype html>" * 90), "no safetensors", "web page",
    ),
    "a header that is no table": (
        "latte", holds(WEIGHTS, (6).to_bytes(8, "little") + b"[1, 2]"), "no safetensors", "again"
    ),
    "a header of something else": (
        "latte", holds(WEIGHTS, (9).to_bytes(8, "little") + b'{"w": 12}'), "no safetensors", "again"
    ),
    "a lost shard": (
        "latte", sharded(lost=True), "s-2.safetensors' is missing: 1 of 2", "interrupted",
    ),
    "shards of another version": ("latte", sharded(other=True), "lacks 'a'", "different versions"),
    "an index of nothing": ("latte", sharded(empty=True), "has no weight_map", "again"),
    "a damaged index of shards": (
        "latte", lambda folder: (sharded()(folder), holds(INDEX, "{")(folder)), "is no JSON",
        "again",
    ),
    "no weights": ("latte", lacks(WEIGHTS), "component 'transformer' has no weights", "again"),
    "no weights of the text encoder": (
        "latte", lacks("text_encoder/model.safetensors"),
        "component 'text_encoder' has no weights", "again",
    ),
    "pickled weights": (
        "latte",
        lambda folder: (folder / "text_encoder/model.safetensors").rename(
            folder / "text_encoder/pytorch_model.bin"
        ),
        "only pickled weights ('pytorch_model.bin')", "save_pretrained",
    ),
    "no tokenizer": (
        "latte", lacks("tokenizer/tokenizer_config.json"), "nothing of 'tokenizer'", "interrupted"
    ),
    "no config": ("latte", lacks("vae/config.json"), "vae/config.json' is missing", "again"),
    "no config of the scheduler": (
        "latte", lacks("scheduler/scheduler_config.json"), "scheduler_config.json' is missing",
        "again",
    ),
    "a damaged index": ("latte", holds("model_index.json", '{"a": '), "is no JSON", "again"),
    "an index that is no text": (
        "latte", holds("model_index.json", b"\xff\xfe\x00"), "no JSON", "again",
    ),
    "an index that is a list": (
        "latte", holds("model_index.json", "[1]"), "no JSON object", "again",
    ),
    "an entry of one word": (
        "latte", becomes("model_index.json", vae=["diffusers"]), "not [library, class]", "diffusers"
    ),
    "a damaged config": ("latte", holds("vae/config.json", "nope"), "vae/config.json", "again"),
    "a size in words": (
        "cogvideox-2b", becomes("transformer/config.json", sample_height="60"),
        "sample_height = '60' in the config of 'transformer' is no whole number", "config",
    ),
    "a size that is none": (
        "cogvideox-2b", becomes("transformer/config.json", sample_height=float("nan")),
        "is no whole number", "config",
    ),
    "a size of nothing": (
        "latte", becomes("transformer/config.json", video_length=0), "is below 1", "config"
    ),
    "a VAE without blocks": (
        "latte", becomes("vae/config.json", block_out_channels=3), "no list", "c",
    ),
    "a scaling that is no list": (
        "ltx-video", becomes("vae/config.json", spatio_temporal_scaling=3), "is no list", "config"
    ),
    "a patch of one number": (
        "wan2.1-14b", becomes("transformer/config.json", patch_size=2), "three positive", "config"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_cannot_be_run_starts_no_worker(
    place: Path, capsys: pytest.CaptureFixture[str], started: list[str], name: str
) -> None:
    known, change, message, hint = BROKEN[name]
    folder = write_known(place / "model", known)
    change(folder)
    code, error = refusal(capsys, folder)
    first, second = error.splitlines()[:2]
    assert message in first
    assert hint in second
    assert code == 1
    assert started == []


GEN: dict[str, tuple[str, str, str, str]] = {
    "frames between latent frames": (
        "cogvideox-5b", "frames = 10",
        "cannot make clips of 10 frames: it makes 8 k + 1 frames", "frames = 9 or frames = 17",
    ),
    "frames of LTX": (
        "ltx-video", "frames = 160", "8 k + 1 frames", "frames = 153 or frames = 161",
    ),
    "frames that Latte has no positions for": (
        "latte", "frames = 17", "it makes 16 frames", "frames = 16"
    ),
    "a height between patches": (
        "wan2.2-ti2v-5b", "height = 720",
        "height 720: it makes a multiple of 32 pixels", "height = 704 or height = 736",
    ),
    "a width between patches": (
        "cogvideox1.5-5b", "width = 1368", "a multiple of 16", "width = 1360 or width = 1376"
    ),
    "a size below one patch": ("hunyuanvideo", "height = 8", "multiple of 16", "height = 16"),
    "the text of Latte": (
        "latte", "max_text_tokens = 200", "120 text tokens", "max_text_tokens = 120",
    ),
    "a short text of Latte": ("latte", "max_text_tokens = 8", "120 text tokens", "= 120"),
    "a short text where positions are added": (
        "cogvideox-2b", "max_text_tokens = 64", "226 text tokens", "max_text_tokens = 226"
    ),
    "a long text": ("cogvideox-5b", "max_text_tokens = 300", "at most 226 text tokens", "= 226"),
    "a long text of Wan": ("wan2.1-14b", "max_text_tokens = 513", "at most 512", "= 512"),
    "a long text of HunyuanVideo": (
        "hunyuanvideo", "max_text_tokens = 9000", "at most 8097", "= 8097"
    ),
    "a negative prompt that no branch reads": (
        "hunyuanvideo", "negative_prompt = 'blurry'", "reads no negative prompt", "leave"
    ),
    "a negative prompt without guidance": (
        "wan2.1-14b", "negative_prompt = 'blurry'\nguidance = 1", "guidance 1 runs one", "above 1"
    ),
    "a shift that there is none of": (
        "cogvideox-5b", "flow_shift = 3", "flow_shift = 3 has no effect on a CogVideoXDDIM", "leave"
    ),
    "a shift that the size decides": (
        "ltx-video", "flow_shift = 3.0", "from the size of the clip", "leave flow_shift out"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GEN)
def test_settings_that_a_model_cannot_be_run_with_start_no_worker(
    place: Path, capsys: pytest.CaptureFixture[str], started: list[str], name: str
) -> None:
    known, text, message, hint = GEN[name]
    write_known(place / "model", known)
    (place / "e.toml").write_text(f"[gen]\n{text}\n")
    code, error = refusal(capsys, place / "model", "--config", "e.toml")
    first, second = error.splitlines()[:2]
    assert message in first
    assert hint in second
    assert code == 2
    assert started == []


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("./modles/x", "model folder './modles/x' is not there", "did you mean models?"),
        ("models/y", "model folder 'models/y' is not there", "there is no 'y' in 'models'"),
        ("models/cog", "model folder 'models/cog' is not there", "did you mean models/cogv?"),
        ("a/b/c", "model folder 'a/b/c' is not there", "there is no 'a'"),
        ("owner/name/", "model folder 'owner/name/' is not there", "there is no 'owner'"),
        ("/nowhere/x", "model folder '/nowhere/x' is not there", "there is no 'nowhere'"),
        ("~nobody-of-that-name/x", "model folder '~nobody-of-that-name/x'", "path in full"),
        ("note.txt", "is a file, not a folder", "model_index.json"),
        ("models", "'models' is not in diffusers format", "model_index.json"),
        ("cogvideox-5", "model 'cogvideox-5' is unknown", "did you mean cogvideox-5b"),
    ],
)
def test_a_path_that_is_wrong_does_not_go_to_the_hub(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    message: str,
    hint: str,
) -> None:
    monkeypatch.setattr(table, "lock", lambda _: pytest.fail("the hub was asked"))
    (place / "models" / "cogv").mkdir(parents=True)
    (place / "note.txt").write_text("x")
    code, error = refusal(capsys, name)
    first, second = error.splitlines()[:2]
    assert message in first
    assert hint in second
    assert code == 2
    assert started == []


def test_a_name_of_the_hub_that_fails_says_that_there_is_no_such_folder_either(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, started: list[str]
) -> None:
    def fail(repo: str, file: str, revision: str | None = None) -> Path:
        raise hub.unreachable(f"{repo}/{file}", OSError("no network"))

    monkeypatch.setattr(hub, "fetch", fail)
    code, error = refusal(capsys, "owner/name")
    assert "cannot be read from the hub: no network" in error
    assert "there is no folder 'owner/name' here" in error
    assert "no folder" not in refusal(capsys, "latte")[1]
    assert code == 1
    assert started == []


def test_a_known_id_is_the_hubs_even_where_a_folder_has_the_name_of_its_owner(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "Wan-AI").mkdir()
    folder = write_known(place / "model", "wan2.1-14b")
    monkeypatch.setattr(table, "lock", lambda _: {"revision": "c" * 40, "at": "now"})
    monkeypatch.setattr(table, "HubFiles", lambda *_: FolderFiles(folder))
    assert table.model_spec("Wan-AI/Wan2.1-T2V-14B-Diffusers").family == "wan"


def test_what_can_be_run_is_let_through(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in KNOWN:
        folder = write_known(place / name, name)
        sharded()(folder)
        with pytest.raises(SystemExit) as caught:
            main(["run", "--model", str(folder), "--methods", "rtn", "--dry-run"])
        assert not caught.value.code, capsys.readouterr().err


def test_a_variant_counts_where_there_is_nothing_else(place: Path) -> None:
    folder = write_known(place / "model", "cogvideox-5b")
    write_weights(folder / "transformer/diffusion_pytorch_model.fp16.safetensors", "F16")
    assert table.model_spec(str(folder)).gen.dtype == "bfloat16"
    (folder / WEIGHTS).unlink()
    assert table.model_spec(str(folder)).gen.dtype == "float16"


def test_parts_that_text_to_video_never_calls_need_not_be_there(place: Path) -> None:
    folder = write_known(place / "model", "wan2.1-14b")
    edit_json(folder, "model_index.json", image_encoder=["transformers", "CLIPVisionModel"])
    assert table.model_spec(str(folder)).family == "wan"
