"""The table of weights, and which bytes they are."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from harness.errors import HarnessError
from harness.store.keys import digest
from harness.vbench import ledger, weights
from harness.vbench.dimensions import DIMENSIONS, EIGHT, EXTRA_WEIGHTS


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "weights"


def put(folder, path, content=b"content"):
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


def test_every_dimension_finds_its_weights_in_the_table_and_nothing_else_stands_there():
    needed = {name for row in DIMENSIONS.values() for name in row.weights}
    needed |= {name for names in EXTRA_WEIGHTS.values() for name in names}
    assert needed == set(weights.table())


def test_places_and_addresses_are_well_formed_and_each_place_is_used_once():
    files = [file for row in weights.table().values() for file in row.files]
    places = [path for file in files for path in (file.path, *file.also, *file.instead)]
    assert len(places) == len(set(places))
    for file in files:
        assert all(not Path(path).is_absolute() and ".." not in path for path in places)
        assert file.urls
        for url in file.urls:
            assert urlsplit(url).scheme == "https"
            assert Path(urlsplit(url).path).suffix in {".zip", *Path(file.path).suffixes}
        assert bool(file.member) == urlsplit(file.urls[0]).path.endswith(".zip")
        assert re.fullmatch("[0-9a-f]{64}|", file.sha256)


def test_a_digest_stands_only_where_the_publisher_wrote_it_or_the_file_is_installed():
    for row in weights.table().values():
        for file in row.files:
            if file.sha256:
                assert file.ships or all(file.sha256 in url for url in file.urls)
            if file.sha256_prefix:
                assert re.search(f"-{file.sha256_prefix}\\.", file.path)


def test_the_table_is_what_the_file_says_however_often_it_is_read():
    text = (Path(weights.__file__).parent / weights.TABLE).read_text(encoding="utf-8")
    assert list(weights.table()) == list(tomllib.loads(text))
    weights.table.cache_clear()
    assert [row.id for row in weights.table().values()] == list(weights.table())


def test_weights_of_several_dimensions_are_named_once():
    assert weights.ids_of(["dynamic_degree", "static_filter", "flow_score"]) == ("raft-things",)
    assert weights.ids_of(["temporal_flickering"]) == ()
    assert "grit" not in weights.ids_of(EIGHT)
    with pytest.raises(HarnessError, match="dimension 'scenes' is unknown") as caught:
        weights.ids_of(["scenes"])
    assert "did you mean scene?" in caught.value.hint


def test_the_folder_is_below_the_home_until_another_one_is_registered(home, tmp_path):
    assert weights.folder() == home / "vbench-weights"
    weights.register(tmp_path / "elsewhere")
    assert weights.folder() == tmp_path / "elsewhere"


def test_missing_files_are_named_with_the_command_that_fetches_them(folder):
    assert [file.path for file in weights.missing(["amt-s"], folder)] == ["amt_model/amt-s.pth"]
    assert weights.missing_line("motion_smoothness", ["amt-s"], folder) == (
        f"weights amt-s (amt_model/amt-s.pth, about 12 MB) are not in {folder}: "
        "harness fetch vbench-weights --dimension motion_smoothness"
    )
    put(folder, "amt_model/amt-s.pth")
    assert weights.missing(["amt-s"], folder) == []


def test_only_what_lacks_of_several_files_is_named(folder):
    put(folder, "bert-base-uncased/config.json")
    put(folder, "bert-base-uncased/pytorch_model.bin")
    line = weights.missing_line("scene", DIMENSIONS["scene"].weights, folder)
    assert "tag2text-swin (caption_model/tag2text_swin_14m.pth)" in line
    assert "bert-base-uncased (bert-base-uncased/vocab.txt)" in line


def test_a_digest_is_computed_once_and_anew_when_the_file_changes(folder, monkeypatch):
    path = put(folder, "amt_model/amt-s.pth")
    sha = hashlib.sha256(b"content").hexdigest()
    assert weights.digests(["amt-s"], folder) == {"amt-s": sha}
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "file_digest", lambda path: pytest.fail("read again"))
        assert weights.digests(["amt-s"], folder) == {"amt-s": sha}
    os.utime(path, ns=(1, 1))
    read = []
    monkeypatch.setattr(ledger, "file_digest", lambda path: read.append(path) or sha)
    assert weights.digests(["amt-s"], folder) == {"amt-s": sha}
    assert read == [path]


def test_what_nobody_states_a_digest_of_is_locked_at_first_use(folder, home):
    path = put(folder, "amt_model/amt-s.pth")
    assert weights.origins(["amt-s"], folder) == {"amt-s": "not locked yet"}
    weights.digests(["amt-s"], folder)
    locked = json.loads((home / weights.LOCK).read_text())["amt_model/amt-s.pth"]
    assert locked["sha256"] == hashlib.sha256(b"content").hexdigest()
    assert weights.origins(["amt-s"], folder)["amt-s"] == f"locked at first use, {locked['at']}"
    path.write_bytes(b"other content")
    with pytest.raises(HarnessError, match="changed: its sha256 is") as caught:
        weights.digests(["amt-s"], folder)
    assert str(home / weights.LOCK) in caught.value.hint
    path.write_bytes(b"content")
    weights.digests(["amt-s"], folder)


@pytest.mark.parametrize("name", ["clip-vit-b-32", "clip-bpe", "musiq-spaq"])
def test_a_file_other_than_the_published_one_is_refused(folder, home, name):
    path = put(folder, weights.table()[name].files[0].path)
    with pytest.raises(HarnessError, match=f"'{path}' is not the published file"):
        weights.digests([name], folder)
    assert not (home / weights.LOCK).exists()


def test_a_known_digest_needs_no_lock(folder, home, monkeypatch):
    file = weights.table()["clip-vit-b-32"].files[0]
    put(folder, file.path)
    monkeypatch.setattr(ledger, "file_digest", lambda path: file.sha256)
    assert weights.digests(["clip-vit-b-32"], folder) == {"clip-vit-b-32": file.sha256}
    assert not (home / weights.LOCK).exists()
    assert weights.origins(["clip-vit-b-32"], folder) == {"clip-vit-b-32": "sha256 known"}


def test_several_files_have_one_digest_over_all_of_them(folder):
    paths = [file.path for file in weights.table()["dino-code"].files]
    for path in paths:
        put(folder, path, path.encode())
    found = weights.digests(["dino-code"], folder)["dino-code"]
    assert found == digest({path: hashlib.sha256(path.encode()).hexdigest() for path in paths})


def test_a_file_that_serves_as_well_is_locked_under_its_own_name(folder, home):
    for name in ("config.json", "vocab.txt", "pytorch_model.bin"):
        put(folder, f"bert-base-uncased/{name}", name.encode())
    first = weights.digests(["bert-base-uncased"], folder)
    put(folder, "bert-base-uncased/model.safetensors", b"tensors")
    assert weights.digests(["bert-base-uncased"], folder) != first
    assert sorted(json.loads((home / weights.LOCK).read_text())) == sorted(
        f"bert-base-uncased/{name}"
        for name in ("config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt")
    )


def test_a_missing_file_has_no_digest(folder):
    with pytest.raises(HarnessError, match="are not in") as caught:
        weights.digests(["amt-s"], folder)
    assert "harness fetch vbench-weights" in caught.value.hint


def test_a_folder_may_declare_its_weights_as_stand_ins_and_then_says_so(folder, home):
    path = put(folder, weights.table()["clip-vit-b-32"].files[0].path)
    put(folder, weights.STAND_IN)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.digests(["clip-vit-b-32"], folder) == {"clip-vit-b-32": sha}
    assert "stand-in" in weights.origins(["clip-vit-b-32"], folder)["clip-vit-b-32"]
    assert not (home / weights.LOCK).exists()


def test_a_lock_that_cannot_be_read_is_two_lines(folder, home):
    put(folder, "amt_model/amt-s.pth")
    put(home, weights.LOCK, b"{")
    with pytest.raises(HarnessError, match="cannot be read") as caught:
        weights.digests(["amt-s"], folder)
    assert "delete it" in caught.value.hint
