"""The CLIP checkpoint from a hub: fetched by the command, locked at first use, found again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from harness.errors import HarnessError
from harness.score import clip_weights
from harness.store.store import home
from tests.models.local_hub import LocalHub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = (
    "config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """The files of the checkpoint's names on a hub of our own, weights in the older form only."""
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in (*SMALL, "pytorch_model.bin", "tf_model.h5"):
        (folder / name).write_text(f"content of {name}")
    with LocalHub(clip_weights.REPO, folder, COMMIT) as local:
        monkeypatch.setattr(constants, "ENDPOINT", local.endpoint)
        template = local.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield local


def test_the_commit_is_locked_at_first_use_and_nothing_else_is_fetched(served: LocalHub) -> None:
    line = clip_weights.fetch_clip()
    assert line.startswith(f"{clip_weights.REPO} at {COMMIT[:12]}, ")
    held = json.loads((home() / clip_weights.RECORD).read_text())
    assert sorted(held["files"]) == sorted([*SMALL, "pytorch_model.bin"])
    assert held["revision"] == COMMIT
    assert clip_weights.clip_missing() == ""
    assert not any("tf_model" in path for path in served.asked)

    # the branch moves on; this machine does not
    identity = clip_weights.clip_identity()
    served.revision = "f" * 40
    clip_weights.fetch_clip()
    assert clip_weights.clip_identity() == identity
    assert clip_weights.clip_about() == f"{clip_weights.REPO} at {COMMIT[:12]}"


def test_weights_in_the_newer_form_come_first(served: LocalHub) -> None:
    (served.folder / "model.safetensors").write_text("newer")
    clip_weights.fetch_clip()
    held = json.loads((home() / clip_weights.RECORD).read_text())
    assert "model.safetensors" in held["files"]
    assert "pytorch_model.bin" not in held["files"]


def test_a_hub_without_weights_is_an_error_and_nothing_is_recorded(served: LocalHub) -> None:
    (served.folder / "pytorch_model.bin").unlink()
    with pytest.raises(HarnessError, match="cannot be read from the hub"):
        clip_weights.fetch_clip()
    assert not (home() / clip_weights.RECORD).exists()


def test_what_the_cache_holds_needs_no_network(
    served: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_weights.fetch_clip()
    identity, asked = clip_weights.clip_identity(), len(served.asked)
    (home() / clip_weights.RECORD).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    clip_weights.fetch_clip()
    assert clip_weights.clip_identity() == identity
    assert len(served.asked) == asked
