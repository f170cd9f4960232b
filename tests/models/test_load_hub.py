"""Of a repository on the hub only what a stage reads is downloaded, once; no network is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from harness.errors import HarnessError
from harness.models import repository
from harness.models.load import load_pipeline
from harness.models.table import model_spec
from tests.models.local_hub import LocalHub
from tests.models.real_folders import FORMATS, pickled, two_variants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Serve = "Callable[[Callable[[Path], Path]], LocalHub]"


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Put a folder on a hub of our own, to which the client is turned."""
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    started: list[LocalHub] = []

    def start(build: Callable[[Path], Path]) -> LocalHub:
        local = LocalHub("someone/tiny", build(tmp_path / "repository"), COMMIT)
        started.append(local)
        local.__enter__()
        monkeypatch.setattr(constants, "ENDPOINT", local.endpoint)
        template = local.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", local.endpoint)
        return local

    yield start
    for local in started:
        local.__exit__()


def downloaded(tmp_path: Path) -> set[str]:
    (snapshot,) = (tmp_path / "cache").glob("*/snapshots/*")
    return {p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()}


def folders(names: set[str], ending: str = ".safetensors") -> set[str]:
    return {name.partition("/")[0] for name in names if name.endswith(ending)}


def test_each_stage_downloads_its_part_and_the_configs_of_the_others(
    serve: Serve, tmp_path: Path
) -> None:
    serve(FORMATS["ltx"])
    spec = model_spec("someone/tiny")
    assert folders(downloaded(tmp_path)) == set()
    text = load_pipeline(spec, device="cpu", dtype="bfloat16", parts={"text"})
    assert text.text_encoder.dtype == torch.bfloat16
    held = downloaded(tmp_path)
    assert folders(held) == {"text_encoder"}
    assert {"vae/config.json", "transformer/config.json", "tokenizer/spiece.model"} <= held
    load_pipeline(spec, device="cpu", dtype="bfloat16", parts={"denoiser"})
    assert folders(downloaded(tmp_path)) == {"text_encoder", "transformer"}
    load_pipeline(spec, device="cpu", dtype="bfloat16")
    held = downloaded(tmp_path)
    assert folders(held) == {"text_encoder", "transformer", "vae"}
    assert not any(name.startswith("ltx-video-2b") for name in held)


def test_other_variants_pickles_and_components_that_nothing_reads_stay_on_the_hub(
    serve: Serve, tmp_path: Path
) -> None:
    def build(folder: Path) -> Path:
        two_variants(folder)
        (folder / "text_encoder" / "pytorch_model.bin").write_bytes(b"no pickle")
        (folder / "vae_temporal_decoder").mkdir()
        (folder / "vae_temporal_decoder" / "config.json").write_text("{}")
        (folder / "tokenizer" / "tokenizer.onnx").write_bytes(b"no tokenizer")
        return folder

    serve(build)
    load_pipeline(model_spec("someone/tiny"), device="cpu", dtype="bfloat16")
    held = downloaded(tmp_path)
    assert folders(held, ".bf16.safetensors") == {"text_encoder", "transformer", "vae"}
    assert folders(held, ".fp16.safetensors") == folders(held, ".bin") == set()
    assert folders(held, ".onnx") == set()
    assert "vae_temporal_decoder" not in {name.partition("/")[0] for name in held}


def test_the_image_encoder_of_a_wan_stays_on_the_hub(serve: Serve, tmp_path: Path) -> None:
    def build(folder: Path) -> Path:
        FORMATS["wan"](folder)
        for name in ("model.safetensors", "config.json"):
            (folder / "image_encoder" / name).write_bytes(b"{}")
        return folder

    serve(build)
    load_pipeline(model_spec("someone/tiny"), device="cpu", dtype="bfloat16")
    assert "image_encoder" not in {name.partition("/")[0] for name in downloaded(tmp_path)}


def test_what_is_downloaded_is_found_without_the_hub_and_what_is_not_is_said(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(FORMATS["latte"])
    spec = model_spec("someone/tiny")
    load_pipeline(spec, device="cpu", dtype="float16", parts={"text"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = load_pipeline(spec, device="cpu", dtype="float16", parts={"text"})
    assert again.text_encoder.dtype == torch.float16
    with pytest.raises(HarnessError) as caught:
        load_pipeline(spec, device="cpu", dtype="float16", parts={"denoiser"})
    assert "'someone/tiny' cannot be downloaded" in caught.value.message
    assert "goes on where it stopped" in caught.value.hint


def test_a_killed_download_goes_on_where_it_stopped(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = serve(FORMATS["ltx"])
    spec = model_spec("someone/tiny")
    real, sent = local._send, []

    def break_down(request, content, kind, body):  # type: ignore[no-untyped-def]
        if body and "vae/diffusion_pytorch_model-00004" in request.path:
            raise ConnectionError  # the line is cut
        if body and request.path.endswith(".safetensors"):
            sent.append(request.path)
        real(request, content, kind, body)

    monkeypatch.setattr(local, "_send", break_down)
    with pytest.raises(HarnessError, match="cannot be downloaded"):
        load_pipeline(spec, device="cpu", dtype="bfloat16", parts={"decoder"})
    before = list(sent)
    assert before
    monkeypatch.setattr(local, "_send", lambda *a: (sent.append(a[0].path), real(*a))[1])
    del sent[:]
    load_pipeline(spec, device="cpu", dtype="bfloat16", parts={"decoder"})
    assert not set(before) & {path for path in sent if path.endswith(".safetensors")}


def test_a_repository_of_pickles_is_refused_before_weights_are_downloaded(
    serve: Serve, tmp_path: Path
) -> None:
    serve(pickled)
    with pytest.raises(HarnessError, match=r"'pytorch_model.bin'"):
        model_spec("someone/tiny")
    assert folders(downloaded(tmp_path)) == set()


def test_a_full_disk_is_told_from_a_network_that_is_down(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    serve(FORMATS["ltx"])
    spec = model_spec("someone/tiny")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(OSError, match="No space left"):
        repository.download(spec.repo, spec.revision)
