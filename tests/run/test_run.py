from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from harness.errors import InfraError
from harness.plan.experiment import Flags, resolve
from harness.plan.experiment_file import ExperimentFile
from harness.report import render_run
from harness.run.folder import standing
from harness.run.run import prepare
from harness.spec import Status
from harness.store.records import load_run
from harness.store.store import Store
from tests.doubles import write_model_folder
from tests.fake_run import Quiet, fake_run

TOY = "tests.doubles:Toy"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, prompts and a store of its own."""
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_model_folder(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt number {i}" for i in range(3)))
    return tmp_path


def flags(place: Path, *methods: str, **more: object) -> Flags:
    given: dict[str, object] = {
        "models": (str(place / "model"),),
        "methods": methods,
        "suite": str(place / "prompts.txt"),
        "out": place / "out",
        "baselines": False,
        **more,
    }
    return Flags(**given)  # type: ignore[arg-type]


def published(kind: str) -> list[str]:
    rows = Store().journal()
    return [r["key"] for r in rows if r["event"] == "published" and r["kind"] == kind]


def test_a_run_leaves_records_clips_figures_and_logs(place: Path) -> None:
    run, _ = fake_run(flags(place, TOY))
    loaded = load_run(place / "out")
    assert loaded.records == run.records
    assert [c.id for c in loaded.cells] == ["model--fp--fp", "model--tests.doubles.Toy--w4a6"]
    assert {c.status for c in loaded.cells} == {Status.OK}
    toy = loaded.cells[1].id
    clips = sorted(p.name for p in (place / "out" / "clips" / toy).iterdir())
    assert clips == ["prompts-000-s0.mp4", "prompts-001-s0.mp4", "prompts-002-s0.mp4"]
    assert (place / "out" / "figures" / toy / "curve.png").read_bytes() == b"png"
    assert (place / "out" / "logs" / f"{toy}.log").exists()
    values = {(r.cell, r.metric, r.prompt): r for r in loaded.records}
    assert values[toy, "psnr_db", "prompts-001"].value == 1.0
    assert values["model--fp--fp", "psnr_db", "prompts-001"].detail == "reference"
    assert values[toy, "avg_w_bits", ""].value == 4.0
    assert values[toy, "compression", ""].value == 4.0
    assert values["model--fp--fp", "step_latency_s", ""].value == 0.01
    assert (toy, "step_latency_s", "") not in values, "a simulated row is not timed"
    assert values[toy, "lpips", ""].status is Status.SKIPPED


def test_the_activation_bits_of_a_step_policy_are_those_of_the_clips(place: Path) -> None:
    run, _ = fake_run(flags(place, TOY, "tests.doubles:Switched"))
    values = {(r.cell, r.metric, r.prompt): r for r in run.records}
    switched = run.cells[-1].id
    assert values[switched, "steps_form_1", "prompts-000"].value == 2
    assert values[switched, "steps_form_0", "prompts-002"].value == 3
    assert values[switched, "clip_a_bits", "prompts-000"].value == 6.0
    mean = values[switched, "avg_a_bits", ""]
    assert mean.value == pytest.approx((6.0 + 5.0 + 5.0) / 3)
    assert "evaluation clips" in mean.detail
    toy = run.cells[1].id
    assert values[toy, "avg_a_bits", ""].value == 6.0
    assert (toy, "clip_a_bits", "prompts-000") not in values


def test_the_reference_is_made_before_what_is_compared_with_it(place: Path) -> None:
    monitor = Quiet()
    fake_run(flags(place, TOY, jobs=4), monitor=monitor)
    order = [line for line in monitor.seen if line.startswith(("start", "ok"))]
    assert order.index("ok model--fp--fp") < order.index("start model--tests.doubles.Toy--w4a6")


def test_the_same_command_makes_nothing_again_and_starts_no_worker(place: Path) -> None:
    first, _ = fake_run(flags(place, TOY))
    before, monitor = len(Store().journal()), Quiet()
    again, prepared = fake_run(flags(place, TOY), monitor=monitor)
    assert monitor.seen == []
    assert len(Store().journal()) == before
    assert again.records == first.records
    assert prepared.plan.missing_clips == 0


def test_one_more_method_computes_only_what_is_new(place: Path) -> None:
    fake_run(flags(place, TOY))
    known = set(published("clip"))
    monitor = Quiet()
    fake_run(flags(place, TOY, "control"), monitor=monitor)
    started = [line for line in monitor.seen if line.startswith("start")]
    assert started == ["start model--control--fp", "start measure--model"], "no text is missing"
    assert len(set(published("clip")) - known) == 3


@pytest.mark.parametrize(
    ("method", "status", "detail"),
    [
        ("Crash", Status.ERROR, "crashed (SIGSEGV)"),
        ("Killed", Status.KILLED, "killed (SIGKILL)"),
        ("Hungry", Status.OOM, "tried to allocate"),
        ("Wrong", Status.ERROR, "exit code 3: the last line of the log"),
    ],
)
def test_a_worker_that_fails_is_a_row_while_the_others_finish(
    place: Path, method: str, status: Status, detail: str
) -> None:
    run, _ = fake_run(flags(place, f"tests.doubles:{method}", TOY))
    by_label = {cell.label: cell for cell in run.cells}
    assert by_label[f"tests.doubles.{method}"].status is status
    assert detail in by_label[f"tests.doubles.{method}"].detail
    assert by_label["tests.doubles.Toy"].status is Status.OK
    assert by_label["fp"].status is Status.OK


def test_a_failed_row_is_tried_again_by_the_same_command(place: Path) -> None:
    fake_run(flags(place, "tests.doubles:Wrong"))
    monitor = Quiet()
    fake_run(flags(place, "tests.doubles:Wrong"), monitor=monitor)
    assert monitor.seen.count("start model--tests.doubles.Wrong--w4a6") == 1


def test_a_worker_over_its_time_is_stopped_and_says_so(place: Path) -> None:
    file = ExperimentFile.model_validate({"execution": {"stall_s": 3.0}})
    run, _ = fake_run(flags(place, "tests.doubles:Slow"), file)
    slow = run.cells[-1]
    assert slow.status is Status.TIMEOUT
    assert slow.detail.startswith("ended: silent for 3 s ([execution] stall_s)")


def test_an_unsupported_width_is_a_row_and_starts_no_worker(place: Path) -> None:
    monitor = Quiet()
    run, _ = fake_run(flags(place, TOY, bits=("w3a4",)), monitor=monitor)
    toy = run.cells[-1]
    assert (toy.status, toy.detail) == (Status.UNSUPPORTED, "toys have two bits or more than three")
    assert "start model--tests.doubles.Toy--w3a4" not in monitor.seen


def test_a_full_disk_stops_the_run_and_keeps_the_clips(place: Path) -> None:
    with pytest.raises(InfraError, match="the disk is full") as caught:
        fake_run(flags(place, "tests.doubles:FullDisk", jobs=1))
    assert caught.value.exit_code == 4
    assert "kept" in caught.value.hint
    assert len(published("clip")) == 3


def test_an_unfinished_run_leaves_a_folder_that_names_what_is_missing(place: Path) -> None:
    with pytest.raises(InfraError):
        fake_run(flags(place, TOY, "tests.doubles:FullDisk", "control", jobs=1))
    run = load_run(place / "out")
    said = {cell.label: (cell.status, cell.detail) for cell in run.cells}
    assert said["fp"] == (Status.OK, "")
    assert said["tests.doubles.FullDisk"][0] is Status.ERROR
    pending = [text for status, text in said.values() if status is Status.SKIPPED]
    assert pending
    assert all(text.startswith("not made yet") for text in pending)
    assert "not finished" in run.provenance["warnings"][0]
    whole = {cell.id for cell in run.cells if cell.status is Status.OK}
    assert {record.cell for record in run.records} == whole


def test_the_standing_of_an_experiment_is_what_the_store_holds_of_it(place: Path) -> None:
    fake_run(flags(place, TOY))
    wider = resolve(ExperimentFile(), flags(place, TOY, bits=("w4a6", "w8a8")))
    prepared = prepare(wider, Store())
    before = len(Store().journal())
    run = standing(prepared.plan, Store(), folder=prepared.folder, command=["x"])
    said = {cell.bits: cell for cell in run.cells}
    assert said["w4a6"].status is Status.OK
    assert said["w8a8"].status is Status.SKIPPED
    assert said["w8a8"].detail == "not made yet: not quantized"
    assert len(Store().journal()) == before


def test_an_output_folder_that_cannot_be_written_is_found_before_any_work(place: Path) -> None:
    (place / "file").write_text("")
    with pytest.raises(InfraError, match="cannot be written"):
        fake_run(flags(place, TOY, out=place / "file" / "out"))
    assert published("clip") == []


def test_a_disk_that_is_too_small_is_found_before_any_work(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(place)._replace(free=1000)
    monkeypatch.setattr("harness.plan.estimate.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(InfraError, match="MB free, the run may need"):
        fake_run(flags(place, TOY))
    assert published("clip") == []


def test_rows_whose_calibration_could_not_be_recorded_say_why(place: Path) -> None:
    (place / "calib.txt").write_text("something else")
    file = ExperimentFile.model_validate(
        {
            "calibration": {"suite": str(place / "calib.txt")},
            "method": [
                {"name": "tests.doubles:Calibrated", "label": "bad", "calibration_seed": 13},
                {"name": "tests.doubles:Calibrated", "label": "good"},
            ],
        }
    )
    run, _ = fake_run(flags(place, methods=None), file)
    by_label = {cell.label: cell for cell in run.cells}
    assert by_label["good"].status is Status.OK
    assert by_label["bad"].status is Status.ERROR
    assert by_label["bad"].detail == "recording the calibration failed: unlucky pool"


def test_prompts_are_encoded_before_anything_that_needs_them(place: Path) -> None:
    monitor = Quiet()
    fake_run(flags(place, TOY, jobs=4), monitor=monitor)
    order = [line for line in monitor.seen if line.startswith(("start", "ok"))]
    assert order[:3] == ["start text--model", "ok text--model", "start model--fp--fp"]
    assert len(published("text")) == 4  # three prompts and the empty one
    monitor = Quiet()
    (place / "prompts.txt").write_text("\n".join(f"prompt number {i}" for i in range(4)))
    fake_run(flags(place, TOY), monitor=monitor)
    assert len(published("text")) == 5


def test_prompts_that_cannot_be_encoded_fail_every_row_with_the_reason(place: Path) -> None:
    (place / "prompts.txt").write_text("an unreadable prompt")
    monitor = Quiet()
    run, _ = fake_run(flags(place, TOY), monitor=monitor)
    assert {cell.status for cell in run.cells} == {Status.ERROR}
    assert {cell.detail for cell in run.cells} == {"encoding the prompts failed: no such word"}
    assert [line for line in monitor.seen if line.startswith("start")] == ["start text--model"]


def test_where_full_precision_diverges_no_other_row_of_the_model_is_made(place: Path) -> None:
    (place / "prompts.txt").write_text("an overflowing prompt")
    monitor = Quiet()
    run, _ = fake_run(flags(place, TOY, "control"), monitor=monitor)
    fp, *others = run.cells
    assert (fp.status, fp.detail) == (Status.DIVERGED, "1 of 1 clips diverged; try bfloat16")
    for cell in others:
        assert cell.status is Status.DIVERGED
        assert cell.detail == f"'{fp.id}' diverged: {fp.detail}"
    starts = [line for line in monitor.seen if line.startswith("start")]
    assert starts == ["start text--model", "start model--fp--fp"]
    render_run(place / "out", Console(quiet=True))
    table = (place / "out" / "table.md").read_text()
    assert f"model, fp fp: diverged: {fp.detail}" in table


def test_timing_encodes_the_empty_prompt_where_it_is_gone(place: Path) -> None:
    fake_run(flags(place, TOY))
    for kind, _, folder in list(Store().entries()):
        if kind in ("text", "measure"):
            shutil.rmtree(folder)
    monitor = Quiet()
    fake_run(flags(place, TOY), monitor=monitor)
    starts = [line for line in monitor.seen if line.startswith("start")]
    assert starts == ["start text--model", "start measure--model"]
    assert sum(kind == "text" for kind, _, _ in Store().entries()) == 1


def test_a_damaged_clip_is_made_again_and_nothing_else(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(flags(place, TOY))
    victim = published("clip")[-1]
    (Store().folder("clip", victim) / "frames.mkv").write_bytes(b"rotten")
    before = len(published("clip"))
    fake_run(flags(place, TOY))
    assert "is damaged" in capsys.readouterr().err
    assert published("clip")[before:] == [victim]
    assert Store().find("clip", victim) is not None


def workers_of(place: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if "fake_worker" in command and str(place) in command:
            found.append(process.info["pid"])
    return found


def wait_until_no_workers(place: Path) -> None:
    deadline = time.monotonic() + 10
    while workers_of(place) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers_of(place) == []


@pytest.mark.slow
def test_killed_runs_and_workers_lose_no_clip_and_make_none_twice(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CLIP_S", "0.3")
    (place / "prompts.txt").write_text("\n".join(f"prompt number {i}" for i in range(12)))
    command = [sys.executable, str(ROOT / "tests" / "fake_run.py"), str(place / "model")]
    command += [str(place / "out"), str(place / "prompts.txt"), TOY, "control"]
    chance, kills, seen = random.Random(3), 0, set[str]()
    for attempt in range(60):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        # Runs are killed by the clock, workers as soon as there is one, however slow the start.
        patience = chance.uniform(0.5, 2.5) if kills < 6 and not attempt % 2 else 120
        deadline = time.monotonic() + patience
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
            if kills < 6 and attempt % 2 and (workers := workers_of(place)):
                os.kill(chance.choice(workers), signal.SIGKILL)
                kills += 1
                break
        if process.poll() is None and kills < 6 and not attempt % 2:
            process.kill()
            kills += 1
        output = process.communicate()[0]
        wait_until_no_workers(place)
        assert seen <= set(published("clip"))
        seen = set(published("clip"))
        run_file = place / "out" / "run.json"
        if b"finished" in output and run_file.exists():
            rows = json.loads(run_file.read_text())["cells"]
            if {row["status"] for row in rows} == {"ok"}:
                break
    assert kills >= 3  # a fast machine may be through before the sixth
    entries = [key for kind, key, _ in Store().entries() if kind == "clip"]
    assert len(entries) == 3 * 12
    assert all(Store().find("clip", key) is not None for key in entries)
    made = published("clip")
    assert len(made) == len(set(made))
    assert not (Store().root / "quarantine").exists()
    assert len(load_run(place / "out").cells) == 3
