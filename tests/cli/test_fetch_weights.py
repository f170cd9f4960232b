"""``harness fetch vbench-weights``."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from click.testing import CliRunner

from harness.cli.fetch_weights import vbench_weights
from harness.errors import HarnessError, UsageError
from harness.vbench import environment, weights
from tests.vbench.web import Page, web

__all__ = ["web"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(environment, "find", lambda: None)
    return tmp_path / "home"


@pytest.fixture
def pages(web, monkeypatch):
    """Every address of the table, on this machine and with made-up content."""
    table = {}
    for name, row in weights.table().items():
        files = []
        for file in row.files:
            body = file.path.encode()
            web.pages[f"/{file.path}"] = Page(body=body)
            sha = hashlib.sha256(body).hexdigest() if file.sha256 else ""
            files.append(
                replace(
                    file,
                    urls=(web.url(f"/{file.path}"),),
                    sha256=sha,
                    sha256_prefix="",
                    bytes=0,
                    member="",
                )
            )
        table[name] = replace(row, files=tuple(files))
    monkeypatch.setattr(weights, "table", lambda: table)
    return web


def invoke(*arguments):
    return CliRunner().invoke(vbench_weights, [str(a) for a in arguments], catch_exceptions=False)


def test_all_weights_are_fetched_once(pages, home):
    done = invoke()
    assert done.exit_code == 0
    assert f"18 of 18 files are in {home / 'vbench-weights'}" in done.output
    assert "amt-s: amt_model/amt-s.pth: fetched" in done.output
    assert weights.missing(weights.table(), weights.folder()) == []
    asked = pages.asked.total()
    again = invoke()
    assert again.output == f"18 of 18 files are in {home / 'vbench-weights'}\n"
    assert pages.asked.total() == asked


def test_only_what_a_dimension_needs_is_fetched(pages):
    assert "1 of 1 files" in invoke("--dimension", "motion_smoothness").output
    assert list(pages.asked) == ["/amt_model/amt-s.pth"]
    assert "1 of 1 files" in invoke("--dimension", "flow_score").output


def test_the_papers_dimensions_need_no_detector(pages):
    invoke("--metrics", "vbench-8")
    assert not any("grit" in path or "umt" in path for path in pages.asked)
    assert any("tag2text" in path for path in pages.asked)


def test_one_failure_does_not_stop_the_others_and_the_exit_code_says_so(pages):
    del pages.pages["/amt_model/amt-s.pth"]
    pages.pages["/clip_model/ViT-B-32.pt"].body = b"another"
    done = invoke("--metrics", "vbench-8")
    assert done.exit_code == 1
    errors = done.stderr.splitlines()
    assert [line.split(":")[0] for line in errors] == ["error", "hint"] * 2
    files = sum(len(row.files) for row in map(weights.table().get, pages_of_eight()))
    assert f"{files - 2} of {files} files" in done.stdout
    pages.pages["/amt_model/amt-s.pth"] = Page(body=b"amt")
    assert invoke("--dimension", "motion_smoothness").exit_code == 0


def pages_of_eight():
    from harness.vbench.dimensions import EIGHT

    return weights.ids_of(EIGHT)


def test_a_full_disk_has_its_own_exit_code(pages, monkeypatch):
    monkeypatch.setattr("harness.vbench.parts.SPARE_BYTES", 1 << 62)
    assert invoke("--dimension", "motion_smoothness").exit_code == 4


def test_on_a_terminal_a_bar_names_the_file(pages, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    pages.pages["/amt_model/amt-s.pth"] = Page(body=bytes(300_000))
    done = invoke("--dimension", "motion_smoothness")
    assert "amt-s: amt_model/amt-s.pth" in done.stderr
    assert "1 of 1 files" in done.stdout


def test_another_folder_is_remembered(pages, tmp_path):
    invoke("--dimension", "motion_smoothness", "--folder", tmp_path / "big disk")
    assert weights.folder() == tmp_path / "big disk"
    assert (tmp_path / "big disk/amt_model/amt-s.pth").is_file()


def test_files_of_a_folder_are_used_and_nothing_is_downloaded(pages, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/amt-s.pth").write_bytes(b"amt")
    chosen = ("--dimension", "motion_smoothness", "--dimension", "dynamic_degree")
    done = invoke(*chosen, "--from", tmp_path / "theirs")
    assert done.exit_code == 1
    assert "1 of 2 files" in done.stdout
    assert "raft-things.pth' is not in" in done.stderr
    assert not pages.asked


def test_the_table_fetches_and_writes_nothing(pages, home, tmp_path):
    text = invoke("--dry-run", "--folder", tmp_path / "w").output
    assert f"folder: {tmp_path / 'w'}" in text
    row = next(line for line in text.splitlines() if line.startswith("amt-s "))
    assert "about 12 MB" in row
    assert "CC-BY-NC-4.0" in row
    assert "missing" in row
    assert row.endswith("motion_smoothness")
    assert not pages.asked
    assert not home.exists()
    assert not (tmp_path / "w").exists()


def test_the_table_tells_files_that_are_here_from_those_that_are_not(pages):
    invoke("--dimension", "motion_smoothness")
    place = weights.folder()
    (place / "clip_model").mkdir()
    (place / "clip_model/ViT-B-32.pt").write_bytes(b"put here by hand")
    text = invoke("--dry-run").output
    states = {line.split()[0]: line for line in text.splitlines()}
    assert "locked at first use" in states["amt-s"]
    assert "  here  " in states["amt-s"]
    assert "here, not checked" in states["clip-vit-b-32"]
    with pytest.raises(HarnessError):
        weights.digests(["clip-vit-b-32"], place)
    assert "here, but another file" in invoke("--dry-run").output


def test_official_weights_are_not_mixed_with_stand_ins(pages, tmp_path):
    (tmp_path / weights.STAND_IN).write_text("random")
    with pytest.raises(HarnessError, match="stand-ins"):
        invoke("--folder", tmp_path)
    assert not pages.asked


def test_two_choices_of_dimensions_are_one_too_many(pages):
    with pytest.raises(UsageError, match="both choose"):
        invoke("--dimension", "scene", "--metrics", "vbench-8")
    with pytest.raises(UsageError, match="is unknown"):
        invoke("--dimension", "scenes")


def test_a_broken_environment_does_not_keep_the_vocabulary_from_coming(pages, monkeypatch):
    def broken():
        raise UsageError("'python' is gone", "register another")

    monkeypatch.setattr(environment, "find", broken)
    done = invoke("--dimension", "overall_consistency")
    assert done.exit_code == 0
    assert "warning: 'python' is gone" in done.stderr
