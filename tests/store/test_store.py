from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from harness.errors import InfraError
from harness.store.durable import probe_folder, replace_file
from harness.store.keys import digest
from harness.store.store import MANIFEST, Store

if TYPE_CHECKING:
    from pathlib import Path

PUBLISHER = """
import sys, pathlib
from harness.store.keys import digest
from harness.store.store import Store
store = Store(pathlib.Path(sys.argv[1]))
for i in range(int(sys.argv[2])):
    inputs = {"n": i}
    if store.find("clip", digest(inputs)) is None:
        with store.build("clip", digest(inputs), inputs) as folder:
            for part in range(4):
                (folder / f"part{part}").write_bytes(bytes([i % 251]) * 40_000)
print("finished", flush=True)
"""


def put(store: Store, n: int, data: bytes = b"data") -> str:
    key = digest({"n": n})
    with store.build("clip", key, {"n": n}) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "f").write_bytes(data)
    return key


def test_what_is_published_is_found_with_its_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = put(store, 1)
    entry = Store(tmp_path).find("clip", key)
    assert entry is not None
    assert (entry.folder / "sub" / "f").read_bytes() == b"data"
    assert entry.manifest["inputs"] == {"n": 1}
    assert not list((tmp_path / "tmp").iterdir())


def test_a_block_that_fails_publishes_nothing(tmp_path: Path) -> None:
    store, key = Store(tmp_path), digest({"n": 1})
    with pytest.raises(RuntimeError, match="broke"), store.build("clip", key, {"n": 1}) as folder:
        (folder / "f").write_text("half")
        raise RuntimeError("broke")
    assert store.find("clip", key) is None
    assert not list((tmp_path / "tmp").iterdir())


def test_the_first_publisher_wins(tmp_path: Path) -> None:
    store, key = Store(tmp_path), digest({"n": 1})
    with store.build("clip", key, {"n": 1}) as late:
        (late / "f").write_text("late")
        with store.build("clip", key, {"n": 1}) as early:
            (early / "f").write_text("early")
    entry = Store(tmp_path).find("clip", key)
    assert entry is not None
    assert (entry.folder / "f").read_text() == "early"
    assert [row["event"] for row in store.journal()] == ["published", "already there"]


def test_a_key_must_be_the_digest_of_its_inputs(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="not the digest"),
        Store(tmp_path).build("clip", "0" * 64, {"n": 1}),
    ):
        pass


def damage_bytes(folder: Path) -> None:
    (folder / "sub" / "f").write_bytes(b"dats")


def damage_length(folder: Path) -> None:
    (folder / "sub" / "f").write_bytes(b"dat")


def damage_missing(folder: Path) -> None:
    (folder / "sub" / "f").unlink()


def damage_manifest(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])


def damage_no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def damage_other_entry(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "key": "0" * 64}))


@pytest.mark.parametrize(
    "damage",
    [
        damage_bytes,
        damage_length,
        damage_missing,
        damage_manifest,
        damage_no_manifest,
        damage_other_entry,
    ],
)
def test_a_damaged_entry_is_moved_away_loudly_and_made_again(
    tmp_path: Path, damage: object, capsys: pytest.CaptureFixture[str]
) -> None:
    key = put(Store(tmp_path), 1)
    damage(Store(tmp_path).folder("clip", key))  # type: ignore[operator]
    store = Store(tmp_path)
    assert store.find("clip", key) is None
    assert "warning: clip" in capsys.readouterr().err
    assert len(list((tmp_path / "quarantine").iterdir())) == 1
    put(store, 1)
    entry = store.find("clip", key)
    assert entry is not None
    assert (entry.folder / "sub" / "f").read_bytes() == b"data"


def test_publishing_over_a_damaged_entry_replaces_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = digest({"n": 1})
    with store.build("clip", key, {"n": 1}) as late:
        (late / "f").write_text("late")
        put(store, 1)
        damage_bytes(store.folder("clip", key))
    entry = Store(tmp_path).find("clip", key)
    assert entry is not None
    assert (entry.folder / "f").read_text() == "late"


def test_killed_publishers_leave_whole_entries_and_make_none_twice(tmp_path: Path) -> None:
    count, chance, kills, finished = 400, random.Random(7), 0, False
    while not finished:
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(tmp_path), str(count)],
            stdout=subprocess.PIPE,
        )
        try:
            process.wait(chance.uniform(0.1, 0.4) if kills < 8 else 60)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        output = process.communicate()[0]
        finished = output.strip() == b"finished"
    assert kills >= 3
    store = Store(tmp_path)
    for i in range(count):
        entry = store.find("clip", digest({"n": i}))
        assert entry is not None
        assert (entry.folder / "part3").read_bytes() == bytes([i % 251]) * 40_000
    published = [row["key"] for row in store.journal() if row["event"] == "published"]
    # A kill may fall between the rename and its line in the journal, never the other way round.
    assert len(published) == len(set(published))
    assert len(published) >= count - kills
    assert not (tmp_path / "quarantine").exists()


def test_leftovers_of_dead_processes_are_stale_those_of_living_ones_are_not(
    tmp_path: Path,
) -> None:
    code = (
        "import sys, os, pathlib\n"
        "from harness.store.keys import digest; from harness.store.store import Store\n"
        "one = {'n': 1}\n"
        "with Store(pathlib.Path(sys.argv[1])).build('clip', digest(one), one): os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    store = Store(tmp_path)
    assert len(store.stale()) == 1
    with store.build("clip", digest({"n": 2}), {"n": 2}):
        assert len(store.stale()) == 1


def test_an_old_leftover_of_another_machine_is_stale(tmp_path: Path) -> None:
    leftover = tmp_path / "tmp" / "clip-0123~elsewhere~12~abcd"
    leftover.mkdir(parents=True)
    assert Store(tmp_path).stale() == []
    long_ago = time.time() - 3 * 86_400
    os.utime(leftover, (long_ago, long_ago))
    assert Store(tmp_path).stale() == [leftover]


def test_a_folder_that_cannot_be_written_is_found_by_the_probe(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InfraError, match="cannot be written") as caught:
        probe_folder(tmp_path / "file" / "out", "choose another")
    assert caught.value.exit_code == 4
    probe_folder(tmp_path / "new" / "out", "")
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "f"
    replace_file(target, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(target, "new \ud800")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
