from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.vbench.dimensions import DIMENSIONS
from harness.vbench.interpreter import WORKER, worker_environment
from tests.vbench import made_clips
from tests.vbench.driving import ask_worker, clip_job, job_of, score

RAFT_FILE = "raft_model/models/raft-things.pth"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return made_clips.write(tmp_path_factory.mktemp("clip") / "clip.mp4", made_clips.moving())


@pytest.fixture(scope="module")
def answer(scoring_python, clip, tmp_path_factory):
    """A job in which nearly everything goes wrong."""
    folder = tmp_path_factory.mktemp("failures")
    weights = folder / "weights"
    (weights / RAFT_FILE).parent.mkdir(parents=True)
    (weights / RAFT_FILE).write_bytes(b"no checkpoint")
    broken = folder / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    wanted = ["temporal_flickering", "subject_consistency", "dynamic_degree", "unheard_of"]
    clips = [
        clip_job("first", clip, [*wanted, "scene", "static_filter"]),
        clip_job("gone", folder / "gone.mp4", wanted),
        clip_job("broken", broken, wanted),
        clip_job("last", clip, wanted),
    ]
    return score(scoring_python, folder / "job", weights, clips)


def _troubles(answer, dimension):
    return [e for e in answer.of("trouble") if e["dimension"] == dimension]


def test_every_value_is_answered_for_exactly_once(answer):
    keys = [key for e in answer.of("trouble") for key in e["keys"]]
    keys += [e["key"] for e in (*answer.of("score"), *answer.of("unscorable"))]
    assert len(keys) == len(set(keys)) == 4 * 4 + 2
    assert answer.of("done")


def test_what_goes_wrong_in_one_dimension_leaves_the_others(answer):
    assert answer.scores.keys() == {"first/temporal_flickering", "last/temporal_flickering"}


def test_a_missing_file_of_weights_is_named_once_for_all_clips(answer):
    (event,) = _troubles(answer, "subject_consistency")
    assert event["status"] == "skipped"
    assert "dino_model/facebookresearch_dino_main/hubconf.py is missing" in event["detail"]
    assert event["keys"] == [
        f"{n}/subject_consistency" for n in ("first", "gone", "broken", "last")
    ]


def test_a_broken_model_is_tried_once_and_loses_every_dimension_that_needs_it(answer):
    for dimension in ("dynamic_degree", "static_filter"):
        (event,) = _troubles(answer, dimension)
        assert event["status"] == "error"
        assert event["detail"].startswith("model raft-things does not load: ")
        assert f"first/{dimension}" in event["keys"]
    assert answer.counts["models"]["raft-things"] == 1


def test_a_dimension_of_another_version_is_unsupported(answer):
    (event,) = _troubles(answer, "unheard_of")
    assert event["status"] == "unsupported"
    assert len(event["keys"]) == 4


def test_a_clip_that_is_no_video_has_no_value(answer):
    (event,) = [e for e in answer.of("unscorable") if e["key"] == "broken/temporal_flickering"]
    assert event["reason"] == "cannot be decoded: cv2 reads no frame"


def test_a_clip_that_is_not_there_is_not_a_property_of_the_clip(answer):
    (event,) = _troubles(answer, "temporal_flickering")
    assert event["status"] == "error"
    assert event["keys"] == ["gone/temporal_flickering"]
    assert "gone.mp4" in event["detail"]


def test_the_scratch_folder_is_left_empty(answer):
    assert list((answer.folder / "scratch").iterdir()) == []


def test_a_job_of_another_schema_fails_and_says_so(scoring_python, random_weights, tmp_path):
    answer = score(scoring_python, tmp_path / "job", random_weights, [], code=1, schema=2)
    (event,) = answer.events
    assert event["event"] == "failed"
    assert "schema 2" in event["detail"]
    assert not event["disk_full"]


def test_a_worker_whose_run_is_gone_stops_before_it_works(scoring_python, random_weights, tmp_path):
    # Process 1 is not the parent of a worker, as a dead run is not.
    answer = score(scoring_python, tmp_path / "job", random_weights, [], code=1, parent=1)
    assert answer.events == []


def test_the_facts_say_what_the_interpreter_holds(scoring_python):
    (facts,) = ask_worker(scoring_python, "--facts")
    assert facts.keys() == {"versions", "full_info", "cuda", "problems"}
    assert facts["versions"]["vbench"]
    entries = json.loads(Path(facts["full_info"]).read_text(encoding="utf-8"))
    assert {name for entry in entries for name in entry["dimension"]} == set(DIMENSIONS)


def test_the_check_tries_every_measure_and_every_dimension(scoring_python):
    lines = ask_worker(scoring_python, "--check")
    assert all(line["ok"] for line in lines if line["kind"] == "compat")
    found = {line["name"]: line for line in lines if line["kind"] == "dimension"}
    assert found.keys() == {*DIMENSIONS, "static_filter"}
    for name, line in found.items():
        # Where one does not import, it is for want of the detector.
        lost = DIMENSIONS[name].detector if name in DIMENSIONS else False
        assert line["ok"] or (lost and "detectron2" in line["detail"]), line


RUN_THAT_VANISHES = """
import json, os, subprocess, sys, time
from pathlib import Path
path, out, *command = sys.argv[1:]
job = json.loads(Path(path).read_text())
Path(path).write_text(json.dumps(job | {"parent": os.getpid()}))
with open(out, "wb") as file:
    worker = subprocess.Popen([*command, path], stdout=file, stderr=subprocess.DEVNULL)
while not Path(out).read_bytes():
    time.sleep(0.05)
print(worker.pid, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_a_worker_ends_with_its_run(scoring_python, random_weights, clip, tmp_path):
    # Scoring these takes half a minute.
    clips = [clip_job(f"c{i}", clip, ["imaging_quality"]) for i in range(25)]
    path, out = tmp_path / "job.json", tmp_path / "events"
    path.write_text(json.dumps(job_of(tmp_path, random_weights, clips)), encoding="utf-8")
    command = [sys.executable, "-c", RUN_THAT_VANISHES, path, out, scoring_python, *WORKER]
    environment = worker_environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    deadline = time.monotonic() + 10
    while _runs(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(int(done.stdout))
    assert '"done"' not in out.read_text(encoding="utf-8")


def _runs(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"
