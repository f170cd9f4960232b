"""A large weight file is read once; a changed one is another model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from harness.models import file_digests
from harness.models.file_digests import REMEMBERED, remembered_digest
from harness.store.keys import file_digest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read whole."""
    paths: list[Path] = []

    def digest(path: Path) -> str:
        paths.append(path)
        return file_digest(path)

    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(file_digests, "file_digest", digest)
    monkeypatch.setattr(file_digests, "LARGE_BYTES", 100)
    return paths


def test_a_large_file_is_read_once_and_again_when_it_changes(
    tmp_path: Path, read: list[Path]
) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"a" * 200)
    first = remembered_digest(path)
    assert remembered_digest(path) == first == file_digest(path)
    assert len(read) == 1
    before = path.stat()
    path.write_bytes(b"b" * 200)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` and rsync do
    assert remembered_digest(path) == file_digest(path) != first
    assert len(read) == 2


def test_a_small_file_is_read_each_time_and_nothing_is_kept(
    tmp_path: Path, read: list[Path]
) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"a" * 50)
    assert remembered_digest(path) == remembered_digest(path)
    assert len(read) == 2
    assert not (tmp_path / "home" / REMEMBERED).exists()


@pytest.mark.parametrize("content", ["nope", "[]", '{"x": 1}'])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, read: list[Path], content: str) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"a" * 200)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / REMEMBERED).write_text(content.replace("x", str(path)))
    assert remembered_digest(path) == file_digest(path)
    assert remembered_digest(path) == file_digest(path)
    assert len(read) == 1
