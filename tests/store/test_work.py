"""Work in progress: who may work where, what is found again, and when it goes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner

from harness.cli.gc import gc
from harness.errors import InfraError
from harness.store.kept import Kept
from harness.store.nest import read_nest, write_nest
from harness.store.store import Store
from harness.store.work import claim, idle_work, unfinished_work

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
HOLD = """
import sys, time
from pathlib import Path
from harness.store.store import Store
from harness.store.work import claim
with claim(Store(Path(sys.argv[1])), "artifact", "k", stamp={}) as work:
    (work.folder / "part").write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_a_killed_process_left_is_found_again_and_its_lock_is_free(store: Store) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.root)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    waits = []

    def kill() -> None:
        waits.append(idle_work(store, older_than_s=-1.0))
        process.kill()
        process.communicate()

    with claim(store, "artifact", "k", stamp={}, waiting=kill) as work:
        assert (work.folder / "part").read_text() == "half"
        assert work.resumed
    assert waits == [[]]  # it waited while the other lived, whose work nobody may remove


def test_what_was_begun_under_other_circumstances_is_begun_anew(
    store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    for device, resumed in (("cpu", False), ("cpu", True), ("cuda", False)):
        with claim(store, "pool", "k", stamp={"device": device}) as work:
            assert work.resumed is resumed
            (work.folder / "part").touch()
    assert "other circumstances" in capfd.readouterr().err


def test_the_folder_goes_when_its_result_is_published_and_stays_otherwise(store: Store) -> None:
    with pytest.raises(RuntimeError), claim(store, "pool", "k", stamp={}) as work:
        raise RuntimeError
    assert unfinished_work(store) == [work.folder]
    with claim(store, "pool", "k", stamp={}) as work:
        work.finish()
    assert list((store.root / "work").iterdir()) == []


def test_a_disk_without_locks_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("harness.store.work.fcntl.flock", refuse)
    with pytest.raises(InfraError, match="cannot be locked"), claim(store, "pool", "k", stamp={}):
        pass


def test_gc_removes_old_work_and_what_is_published_and_names_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path))
    store = Store()
    for key in ("fresh", "old", "published"):
        with claim(store, "pool", key, stamp={}) as work:
            (work.folder / "part").write_bytes(b"0" * 1000)
    long_ago = time.time() - 8 * 86_400
    os.utime(store.root / "work" / "pool-old", (long_ago, long_ago))
    store.folder("pool", "published").mkdir(parents=True)
    done = CliRunner().invoke(gc, ["--dry-run"])
    assert len(unfinished_work(store)) == 3
    done = CliRunner().invoke(gc)
    assert "unfinished: work/pool-old" in done.output
    assert "1 unfinished results" in done.output
    assert [path.name for path in unfinished_work(store)] == ["pool-fresh"]
    assert sorted(p.name for p in (store.root / "work").iterdir()) == [
        "pool-fresh", "pool-fresh.lock"
    ]  # fmt: skip
    CliRunner().invoke(gc, ["--older-than", "0"])
    assert unfinished_work(store) == []


def test_parts_come_back_to_the_bit(tmp_path: Path) -> None:
    part = {
        "tensors": [torch.tensor([float("nan"), -0.0]), torch.arange(3).bfloat16()],
        3: (1, 0.1, None, True, "text", {}),
    }
    Kept(tmp_path).save("a part", part)
    back = Kept(tmp_path).load("a part", CPU)
    assert list(back) == ["tensors", 3]
    assert back[3] == part[3]
    for a, b in zip(back["tensors"], part["tensors"], strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    assert Kept(tmp_path).load("another", CPU) is None


def test_a_damaged_part_is_said_and_made_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = Kept(tmp_path)
    kept.save("part", 1)
    (tmp_path / "part.safetensors").write_bytes(b"cut")
    assert kept.load("part", CPU) is None
    assert "is damaged" in capfd.readouterr().err


def test_what_would_come_back_as_something_else_is_refused(tmp_path: Path) -> None:
    from harness.models.block_input import Sample

    for value in (Sample(0, 1), object(), {(1, 2): 3}):
        with pytest.raises(TypeError, match="cannot be kept"):
            Kept(tmp_path).save("part", value)
    assert Kept(tmp_path).load("part", CPU) is None


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "nest"
    write_nest(path, [1])
    with pytest.raises(TypeError):
        write_nest(path, [object()])
    assert read_nest(path, CPU) == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_the_time_of_ended_attempts_is_remembered(tmp_path: Path) -> None:
    first = Kept(tmp_path)
    time.sleep(0.05)
    first.save("part", 1)
    assert Kept(tmp_path).seconds_before >= 0.05


def test_two_owners_cannot_share_a_folder(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.part("walk")
    with pytest.raises(ValueError, match="two parts"):
        kept.part("walk")
