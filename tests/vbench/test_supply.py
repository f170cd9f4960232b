"""Weight files from beside them, an installed package, a folder of the user's, the web."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.vbench import weights
from harness.vbench.supply import COPIED, FETCHED, HERE, LINKED, Offer, Supply
from tests.vbench.web import Page, web

__all__ = ["web"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def supply(tmp_path):
    return Supply(folder=tmp_path / "weights")


@pytest.fixture
def theirs(tmp_path):
    (tmp_path / "theirs").mkdir()
    return tmp_path / "theirs"


def put(folder, path, content=b"content"):
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


def bring(supply, name, at=0, **changes):
    row = weights.table()[name]
    return supply.bring(row, replace(row.files[at], **changes))


def test_a_file_comes_from_the_web_once_and_is_locked_with_its_address(web, supply, home):
    web.pages["/a"] = Page(body=b"weights")
    assert bring(supply, "amt-s", urls=(web.url("/a"),)) == FETCHED
    assert bring(supply, "amt-s", urls=(web.url("/a"),)) == HERE
    assert web.asked["/a"] == 1
    locked = json.loads((home / weights.LOCK).read_text())["amt_model/amt-s.pth"]
    assert locked["from"] == web.url("/a")
    assert weights.missing(["amt-s"], supply.folder) == []


def test_what_the_publisher_changed_since_it_was_locked_is_not_taken(web, supply, home):
    web.pages["/a"] = Page(body=b"weights")
    bring(supply, "amt-s", urls=(web.url("/a"),))
    (supply.folder / "amt_model/amt-s.pth").unlink()
    web.pages["/a"] = Page(body=b"other")
    with pytest.raises(HarnessError, match="gave a file whose sha256") as caught:
        bring(supply, "amt-s", urls=(web.url("/a"),))
    assert str(home / weights.LOCK) in caught.value.hint
    assert not (supply.folder / "amt_model/amt-s.pth").exists()


def test_one_member_of_an_archive_is_kept_and_the_archive_is_not(web, supply):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as pack:
        pack.writestr("models/raft-things.pth", b"raft")
        pack.writestr("models/raft-small.pth", b"small")
    web.pages["/models.zip"] = Page(body=buffer.getvalue(), drops=1)
    assert bring(supply, "raft-things", urls=(web.url("/models.zip"),)) == FETCHED
    files = [p for p in supply.folder.rglob("*") if p.is_file()]
    assert files == [supply.folder / "raft_model/models/raft-things.pth"]
    assert files[0].read_bytes() == b"raft"


def test_a_file_that_two_readers_want_lies_at_both_places_and_takes_room_once(web, supply):
    web.pages["/a"] = Page(body=b"dino")
    bring(supply, "dino-vitb16", urls=(web.url("/a"),))
    first = supply.folder / "torch/hub/checkpoints/dino_vitbase16_pretrain.pth"
    assert first.samefile(supply.folder / "dino_model/dino_vitbase16_pretrain.pth")


def test_a_cache_of_the_official_package_is_completed_without_the_web(supply):
    put(supply.folder, "dino_model/dino_vitbase16_pretrain.pth")
    assert bring(supply, "dino-vitb16", urls=("http://127.0.0.1:9/none",)) == LINKED
    assert weights.missing(["dino-vitb16"], supply.folder) == []


def test_the_vocabulary_comes_from_the_scoring_environment(supply, tmp_path):
    site = tmp_path / "site-packages"
    put(site, "clip/bpe_simple_vocab_16e6.txt.gz", b"words")
    supply = replace(supply, site_packages=site)
    sha = hashlib.sha256(b"words").hexdigest()
    assert bring(supply, "clip-bpe", sha256=sha, urls=("http://127.0.0.1:9/none",)) == LINKED
    (supply.folder / "ViCLIP/bpe_simple_vocab_16e6.txt.gz").unlink()
    with pytest.raises(HarnessError, match="is not the published file"):
        bring(supply, "clip-bpe")


@pytest.mark.parametrize(
    "path", ["amt_model/amt-s.pth", "amt-s.pth", "deep/in/some/folder/amt-s.pth"]
)
def test_a_folder_gives_a_file_by_its_path_or_by_its_name(supply, theirs, path):
    mine = put(theirs, path)
    assert bring(replace(supply, offer=Offer(theirs)), "amt-s") == LINKED
    assert (supply.folder / "amt_model/amt-s.pth").samefile(mine)


def test_a_folder_on_another_file_system_is_copied(supply, theirs, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    put(theirs, "amt-s.pth", b"copy me")
    assert bring(replace(supply, offer=Offer(theirs)), "amt-s") == COPIED
    assert (supply.folder / "amt_model/amt-s.pth").read_bytes() == b"copy me"
    assert len(list((supply.folder / "amt_model").iterdir())) == 1


def test_with_a_folder_nothing_is_downloaded(web, supply, theirs):
    web.pages["/a"] = Page(body=b"weights")
    with pytest.raises(HarnessError, match="is not in") as caught:
        bring(replace(supply, offer=Offer(theirs)), "amt-s", urls=(web.url("/a"),))
    assert web.url("/a") in caught.value.hint
    assert not web.asked


def test_a_wrong_file_in_the_folder_is_refused_and_not_linked(supply, theirs):
    put(theirs, "ViT-B-32.pt")
    with pytest.raises(HarnessError, match="is not the published file"):
        bring(replace(supply, offer=Offer(theirs)), "clip-vit-b-32")
    assert not (supply.folder / "clip_model/ViT-B-32.pt").exists()


def test_of_several_files_of_a_name_the_right_one_is_taken_or_none(supply, theirs):
    put(theirs, "a/ViT-B-32.pt", b"wrong")
    right = put(theirs, "b/ViT-B-32.pt", b"right")
    offered = replace(supply, offer=Offer(theirs))
    bring(offered, "clip-vit-b-32", sha256=hashlib.sha256(b"right").hexdigest())
    assert (supply.folder / "clip_model/ViT-B-32.pt").samefile(right)
    put(theirs, "a/amt-s.pth", b"one")
    put(theirs, "b/amt-s.pth", b"two")
    with pytest.raises(HarnessError, match="these differ"):
        bring(replace(supply, offer=Offer(theirs)), "amt-s")


def test_files_that_belong_together_come_from_one_folder_that_has_them_all(supply, theirs):
    for name in ("hubconf.py", "utils.py", "vision_transformer.py"):
        put(theirs, f"dino-main/{name}", name.encode())
    put(theirs, "dino-main/other/utils.py", b"another")
    put(theirs, "another-model/utils.py", b"another")
    offered = replace(supply, offer=Offer(theirs))
    for at in range(3):
        bring(offered, "dino-code", at)
    utils = supply.folder / "dino_model/facebookresearch_dino_main/utils.py"
    assert utils.read_bytes() == b"utils.py"


def test_a_snapshot_of_the_hubs_cache_will_do(supply, theirs):
    snapshot = theirs / "models--bert-base-uncased" / "snapshots" / "abc"
    for name in ("config.json", "vocab.txt", "pytorch_model.bin"):
        blob = put(theirs, f"models--bert-base-uncased/blobs/{name}-blob", name.encode())
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    offered = replace(supply, offer=Offer(theirs))
    for at in range(3):
        bring(offered, "bert-base-uncased", at)
    model = supply.folder / "bert-base-uncased" / "pytorch_model.bin"
    assert model.read_bytes() == b"pytorch_model.bin"
    assert not model.is_symlink()
    assert weights.missing(["bert-base-uncased"], supply.folder) == []


def test_an_archive_in_the_folder_is_opened(supply, theirs):
    with zipfile.ZipFile(theirs / "models.zip", "w") as pack:
        pack.writestr("models/raft-things.pth", b"raft")
    assert bring(replace(supply, offer=Offer(theirs)), "raft-things") == COPIED
    assert (theirs / "models.zip").exists()


def test_a_folder_that_is_none_is_an_error(tmp_path):
    with pytest.raises(HarnessError, match="is no folder"):
        Offer(tmp_path / "nowhere")
