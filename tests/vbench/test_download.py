"""Downloads from a host that drops, lies and refuses."""

from __future__ import annotations

import fcntl
import hashlib
import io
import random
import subprocess
import sys
import time
import zipfile

import pytest

from harness.errors import HarnessError, InfraError
from harness.vbench import download as downloads
from harness.vbench import parts
from harness.vbench.download import IDLE_ATTEMPTS, Wanted, download, extract
from tests.vbench.web import Page, Web, web

__all__ = ["web"]

BODY = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(web, tmp_path):
    web.pages["/a"] = Page(body=BODY)
    seen = []
    url = download([web.url("/a")], tmp_path / "x" / "a", report=lambda n, m: seen.append((n, m)))
    assert url == web.url("/a")
    assert (tmp_path / "x" / "a").read_bytes() == BODY
    assert names(tmp_path / "x") == ["a"]
    assert seen[-1] == (len(BODY), len(BODY))


def test_a_connection_that_breaks_is_taken_up_where_it_stopped(web, tmp_path):
    web.pages["/a"] = Page(body=BODY, drops=3)
    download([web.url("/a")], tmp_path / "a", Wanted(sha256=SHA256))
    assert (tmp_path / "a").read_bytes() == BODY
    assert web.asked["/a"] == 4
    assert web.sent["/a"] == len(BODY)


def test_the_next_command_goes_on_where_the_last_one_gave_up(web, tmp_path):
    web.pages["/a"] = Page(body=BODY, drops=1)
    with pytest.raises(HarnessError, match="the host answers 404"):
        download(
            [web.url("/a")], tmp_path / "a", report=lambda here, total: web.pages.pop("/a", None)
        )
    assert parts.part_bytes(tmp_path / "a") == len(BODY) // 2
    web.pages["/a"] = Page(body=BODY)
    web.sent.clear()
    download([web.url("/a")], tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert web.sent["/a"] == len(BODY) - len(BODY) // 2


def test_a_host_that_falls_silent_is_asked_for_the_rest(web, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT_S", 0.2)
    web.pages["/a"] = Page(body=BODY, stalls=1)
    download([web.url("/a")], tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert web.sent["/a"] == len(BODY)


def test_a_killed_command_is_taken_up_where_it_was(web, tmp_path):
    web.pages["/a"] = Page(body=BODY, stalls=1)
    code = (
        "import sys, pathlib; from harness.vbench.download import download; "
        "download([sys.argv[1]], pathlib.Path(sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", code, web.url("/a"), str(tmp_path / "a")]
    with subprocess.Popen(arguments) as child:
        assert web.stalled.wait(60.0)
        while parts.part_bytes(tmp_path / "a") < len(BODY) // 2 and child.poll() is None:
            time.sleep(0.01)
        child.kill()
    assert not (tmp_path / "a").exists()
    download([web.url("/a")], tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert web.ranges == [f"bytes={len(BODY) // 2}-"]
    assert names(tmp_path) == ["a"]


def test_a_host_that_changed_the_file_meanwhile_sends_all_of_the_new_one(web, tmp_path):
    page = web.pages["/a"] = Page(body=BODY, drops=1)
    other = bytes(reversed(BODY))

    def change(here, total):
        page.body, page.etag = other, '"two"'

    download([web.url("/a")], tmp_path / "a", report=change)
    assert (tmp_path / "a").read_bytes() == other


@pytest.mark.parametrize("page", [{"ranges": False}, {"etag": None}, {"etag": 'W/"weak"'}])
def test_without_ranges_or_a_sure_version_the_file_is_fetched_anew(web, tmp_path, page):
    web.pages["/a"] = Page(body=BODY, drops=1, **page)
    download([web.url("/a")], tmp_path / "a", Wanted(sha256=SHA256))
    assert (tmp_path / "a").read_bytes() == BODY
    assert web.sent["/a"] == len(BODY) // 2 + len(BODY)


def test_a_host_that_always_breaks_off_in_the_same_place_is_given_up(web, tmp_path):
    web.pages["/a"] = Page(body=BODY, ranges=False, drops=100)
    with pytest.raises(HarnessError, match="ended after 150000 of 300000 bytes") as caught:
        download([web.url("/a")], tmp_path / "a")
    assert "it goes on from there" in caught.value.hint
    assert web.asked["/a"] == 1 + IDLE_ATTEMPTS
    assert not (tmp_path / "a").exists()


def test_a_host_that_announces_more_than_it_has_is_given_up(web, tmp_path):
    web.pages["/a"] = Page(body=BODY, length=len(BODY) + 7)
    with pytest.raises(HarnessError, match=r"fewer bytes than it said|ended after"):
        download([web.url("/a")], tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_host_that_announces_less_than_the_known_size_is_refused(web, tmp_path):
    web.pages["/a"] = Page(body=BODY, length=1000)
    with pytest.raises(HarnessError, match="has 1000 bytes, the file 300000"):
        download([web.url("/a")], tmp_path / "a", Wanted(bytes=len(BODY)))
    assert names(tmp_path) == []


def test_a_host_that_does_not_say_how_long_the_file_is_is_refused(web, tmp_path):
    web.pages["/a"] = Page(body=BODY, length=-1)
    with pytest.raises(HarnessError, match="does not say how long"):
        download([web.url("/a")], tmp_path / "a")
    download([web.url("/a")], tmp_path / "a", Wanted(sha256=SHA256))
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("known", [SHA256, SHA256[:8]])
def test_a_file_with_another_digest_is_thrown_away(web, tmp_path, known):
    web.pages["/a"] = Page(body=BODY)
    web.pages["/b"] = Page(body=BODY[:-1] + bytes([BODY[-1] ^ 1]))
    download([web.url("/a")], tmp_path / "a", Wanted(sha256=known))
    with pytest.raises(HarnessError, match=r"sha256 is \w{12}\.\.\., not") as caught:
        download([web.url("/b")], tmp_path / "b", Wanted(sha256=known))
    assert "--from FOLDER" in caught.value.hint
    assert names(tmp_path) == ["a"]


def test_the_digest_that_the_hub_announces_is_checked(web, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", web.url(""))
    web.pages["/o/r/resolve/main/a"] = Page(goes_to="/a", headers={"X-Linked-Etag": f'"{SHA256}"'})
    web.pages["/a"] = Page(body=BODY, drops=1)
    hub = "https://huggingface.co/o/r/resolve/main/a"
    assert download([hub], tmp_path / "a") == hub
    web.pages["/a"] = Page(body=BODY[:-1])
    with pytest.raises(HarnessError, match=f"not {SHA256[:12]}"):
        download([hub], tmp_path / "b")


def test_a_page_that_is_not_there_is_asked_for_once_and_the_next_address_is_tried(web, tmp_path):
    web.pages["/a"] = Page(body=BODY)
    assert download([web.url("/gone"), web.url("/a")], tmp_path / "a") == web.url("/a")
    assert web.asked["/gone"] == 1
    with pytest.raises(HarnessError, match=r"no address gives 'b': .*404.*; .*404"):
        download([web.url("/gone"), web.url("/gone2")], tmp_path / "b")
    assert names(tmp_path) == ["a"]


def test_a_host_that_is_busy_is_asked_again(web, tmp_path):
    web.pages["/a"] = Page(body=BODY, refusals=[503, 429])
    download([web.url("/a")], tmp_path / "a")
    assert web.asked["/a"] == 3


def test_a_web_page_in_place_of_a_file_is_refused(web, tmp_path):
    web.pages["/a"] = Page(body=b"<html>please log in</html>", kind="text/html; charset=utf-8")
    with pytest.raises(HarnessError, match="gave a web page"):
        download([web.url("/a")], tmp_path / "a")
    assert names(tmp_path) == []


def test_no_answer_at_all_is_two_lines(web, tmp_path):
    gone = Web()
    url = gone.url("/a")
    gone.close()
    with pytest.raises(HarnessError, match="no answer") as caught:
        download([url], tmp_path / "a")
    assert str(caught.value).count("\n") == 1


def test_what_does_not_fit_is_refused_before_a_byte_is_written(web, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SPARE_BYTES", 1 << 62)
    web.pages["/a"] = Page(body=BODY)
    with pytest.raises(InfraError, match="MB free"):
        download([web.url("/a")], tmp_path / "a")
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_keeps_what_is_here(web, tmp_path, monkeypatch):
    web.pages["/a"] = Page(body=BODY)

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, chunk):
            if self.file.seek(0, 2) > 50_000:
                raise OSError(28, "No space left on device")
            return self.file.write(chunk[:10_000])

        def __getattr__(self, name):
            return getattr(self.file, name)

    start = parts.Part.__init__
    monkeypatch.setattr(
        parts.Part, "__init__", lambda self, target, file: start(self, target, Full(file))
    )
    with pytest.raises(InfraError, match="is full"):
        download([web.url("/a")], tmp_path / "a")
    monkeypatch.undo()
    held = parts.part_bytes(tmp_path / "a")
    assert 50_000 < held < 100_000
    download([web.url("/a")], tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert web.ranges == [f"bytes={held}-"]


def test_two_processes_do_not_write_one_file(web, tmp_path):
    web.pages["/a"] = Page(body=BODY)
    with (tmp_path / "a.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(HarnessError, match="another process"):
            download([web.url("/a")], tmp_path / "a")


def test_one_member_comes_out_of_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as pack:
        pack.writestr("models/one", BODY)
        pack.writestr("models/two", b"two")
    extract(tmp_path / "all.zip", "models/one", tmp_path / "m" / "one")
    assert (tmp_path / "m" / "one").read_bytes() == BODY
    assert names(tmp_path / "m") == ["one"]
    with pytest.raises(HarnessError, match="does not hold 'models/three'"):
        extract(tmp_path / "all.zip", "models/three", tmp_path / "m" / "three")


def test_a_damaged_archive_gives_nothing(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as pack:
        pack.writestr("one", BODY)
    broken = bytearray(buffer.getvalue())
    broken[1000] ^= 1
    (tmp_path / "all.zip").write_bytes(broken)
    with pytest.raises(HarnessError, match="does not hold 'one'"):
        extract(tmp_path / "all.zip", "one", tmp_path / "m" / "one")
    assert not (tmp_path / "m" / "one").exists()
    assert not (tmp_path / "m" / "one.part").exists()
