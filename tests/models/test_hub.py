"""Models of the hub: resolved, locked at first use and loaded at that commit; no network."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from harness.errors import HarnessError, UsageError
from harness.models import hub
from harness.models.families import FAMILIES
from harness.models.load import load_pipeline
from harness.models.table import model_spec, transformer_parameters
from harness.store.store import home
from harness.testing.miniatures import MINIATURES, wan
from tests.models.local_hub import LocalHub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A sharded bfloat16 miniature on a hub of our own, to which the client is turned."""
    folder = tmp_path / "repository"
    MINIATURES["ltx"]().to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    with LocalHub("someone/tiny", folder, COMMIT) as local:
        monkeypatch.setattr(constants, "ENDPOINT", local.endpoint)
        template = local.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", local.endpoint)
        yield local


def test_a_hub_model_is_locked_at_first_use_and_loaded_at_that_commit(
    served: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = model_spec("someone/tiny")
    assert (spec.family, spec.revision, spec.repo) == ("ltx", COMMIT, "someone/tiny")
    assert spec.locked.startswith("locked at first use, 20")
    assert len(list((served.folder / "transformer").glob("*.safetensors"))) > 1
    pipeline = load_pipeline(spec, device="cpu", dtype="bfloat16")
    assert pipeline.transformer.dtype == torch.bfloat16
    parameters = sum(p.numel() for p in pipeline.transformer.parameters())
    assert transformer_parameters(spec) == parameters
    resolved = [path for path in served.asked if "/resolve/" in path]
    assert resolved
    at_first, later = resolved[:1], [p for p in resolved if "/resolve/main/" not in p]
    assert "/resolve/main/" in at_first[0]
    assert len(later) > 10
    assert all(f"/resolve/{COMMIT}/" in path for path in later)

    # the branch moves on; this machine does not
    served.revision = "f" * 40
    assert model_spec("someone/tiny") == spec
    held = json.loads((home() / hub.LOCK).read_text())
    assert held["someone/tiny"]["revision"] == COMMIT


def test_short_names_and_their_ids_are_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(repo: str) -> str:
        asked.append(repo)
        return COMMIT

    def index(repo: str, file: str, revision: str | None = None) -> Path:
        del repo
        assert (file, revision) == (hub.MODEL_INDEX, COMMIT)
        path = home() / "index.json"
        path.write_text('{"transformer": ["diffusers", "CogVideoXTransformer3DModel"]}')
        return path

    monkeypatch.setattr(hub, "ask_revision", answer)
    monkeypatch.setattr(hub, "fetch", index)
    short, full = model_spec("cogvideox-2b"), model_spec("zai-org/CogVideoX-2b")
    assert asked == ["zai-org/CogVideoX-2b"]
    assert (short.repo, short.revision, short.gen) == (full.repo, full.revision, full.gen)
    assert short.gen.dtype == "float16"


def test_nothing_is_invented_where_the_hub_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(HarnessError, match="cannot be read from the hub") as caught:
        model_spec("wan2.1-1.3b")
    assert "give the folder" in caught.value.hint
    assert not (home() / hub.LOCK).exists()
    with pytest.raises(UsageError, match="unknown") as unknown:
        model_spec("wan2.1-1.3")
    assert "did you mean wan2.1-1.3b" in unknown.value.hint


def test_the_table_is_complete_and_names_no_commit() -> None:
    assert {m.family for m in hub.HUB.values()} == set(FAMILIES) == set(hub.FAMILY_GEN)
    for model in hub.HUB.values():
        assert hub.is_hub_id(model.repo)
        assert model.gen.frames % 4 in (0, 1)


def test_a_model_with_two_denoisers_is_refused_with_the_reason(tmp_path: Path) -> None:
    wan(experts=2).save_pretrained(tmp_path / "a14b")
    with pytest.raises(HarnessError, match="has two denoisers") as caught:
        model_spec(str(tmp_path / "a14b"))
    assert "wan2.1-1.3b" in caught.value.hint


@pytest.mark.parametrize("name", MINIATURES)
def test_a_saved_miniature_is_loaded_and_samples_in_half_precision(
    name: str, tmp_path: Path
) -> None:
    from harness.models.sample import sample_clip
    from harness.testing.miniatures import GENS

    MINIATURES[name]().save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model" / "transformer").glob("*.safetensors"))) > 1
    spec = model_spec(str(tmp_path / "model"))
    assert spec.family == name
    pipeline = load_pipeline(spec, device="cpu", dtype="bfloat16")
    expected = torch.float32 if name == "wan" else torch.bfloat16
    assert pipeline.vae.dtype == expected
    made = sample_clip(pipeline, "a red circle moves", GENS[name], seed=1)
    assert made.frames.shape == (GENS[name].frames, 32, 32, 3)
    assert bool(torch.isfinite(made.latents).all())
