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
from harness.models.description import component_weights, describe
from harness.models.hub_files import FACTS
from harness.models.load import load_pipeline
from harness.models.model_files import FolderFiles
from harness.models.repository import LISTS
from harness.models.table import model_spec, transformer_parameters
from harness.plan.model_sheet import model_sheet
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
    assert {name.rpartition(".")[2] for name in served.whole} == {"json"}
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

    # the branch moves on; this machine does not, and asks nothing that it knows
    served.revision, served.asked[:] = "f" * 40, []
    assert model_spec("someone/tiny") == spec
    assert served.asked == []
    held = json.loads((home() / hub.LOCK).read_text())
    assert held["someone/tiny"]["revision"] == COMMIT


def test_the_sheet_of_a_hub_model_counts_every_component_without_its_weights(
    served: LocalHub,
) -> None:
    spec = model_spec("someone/tiny")
    components = model_sheet(spec, spec.gen)[-1]
    folder = FolderFiles(served.folder)
    for name, value, note in components.rows:
        count = component_weights(folder, describe(folder, "x"), name).count
        assert value.startswith(f"{count:,} parameters"), name
        assert note.endswith("stored in bfloat16")
    assert [row[0] for row in components.rows] == ["text_encoder", "transformer", "vae"]
    assert {name.rpartition(".")[2] for name in served.whole} == {"json"}


def test_a_repository_that_lacks_a_shard_is_refused_before_weights_are_downloaded(
    served: LocalHub,
) -> None:
    shard = sorted((served.folder / "transformer").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(HarnessError, match=f"{shard.name}' is missing") as caught:
        model_spec("someone/tiny")
    assert "there is no folder 'someone/tiny' here" in caught.value.hint
    assert {name.rpartition(".")[2] for name in served.whole} == {"json"}


def test_without_network_the_cache_of_the_hub_stands_in(
    served: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = model_spec("someone/tiny")
    load_pipeline(spec, device="cpu", dtype="bfloat16")
    for path in (*(home() / FACTS).iterdir(), *(home() / LISTS).iterdir()):
        path.write_text("damaged")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    served.asked[:] = []
    assert model_spec("someone/tiny") == spec
    assert served.asked == []


def test_what_the_hub_does_not_give_is_told_apart(served: LocalHub) -> None:
    with pytest.raises(HarnessError, match="no such repository, or it is private"):
        hub.fetch("nobody/nothing", "model_index.json")
    with pytest.raises(HarnessError, match="the repository has no such file") as caught:
        hub.fetch("someone/tiny", "absent.json")
    assert "-Diffusers" in caught.value.hint


@pytest.mark.parametrize("content", ["nope", "[1]", '{"someone/tiny": {"at": "now"}}'])
def test_a_damaged_lock_is_named(content: str) -> None:
    home().mkdir()
    (home() / hub.LOCK).write_text(content)
    with pytest.raises(HarnessError, match="is damaged") as caught:
        model_spec("someone/tiny")
    assert caught.value.hint.startswith("delete it and try again")


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


def test_the_table_names_repositories_and_no_commit() -> None:
    for model in hub.HUB.values():
        assert hub.is_hub_id(model.repo)
        assert model.repo in model.about


def test_experts_are_admitted_by_what_their_folder_says(tmp_path: Path) -> None:
    wan(experts=2).save_pretrained(tmp_path / "a14b")
    assert model_spec(str(tmp_path / "a14b")).family == "wan"
    config = tmp_path / "a14b" / "transformer_2" / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps({**told, "ffn_dim": 128}))
    with pytest.raises(HarnessError, match=r"not of one architecture: \['ffn_dim'\] differ"):
        model_spec(str(tmp_path / "a14b"))
    config.write_text(json.dumps(told))
    index = tmp_path / "a14b" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "boundary_ratio": None}))
    with pytest.raises(HarnessError, match="nothing says when each serves") as caught:
        model_spec(str(tmp_path / "a14b"))
    assert "boundary_ratio" in caught.value.hint


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
