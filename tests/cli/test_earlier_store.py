"""A store and a run folder as 0.1.0 wrote them: nothing is found, nothing crashes, gc clears it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from harness.cli.main import main
from harness.models.table import model_spec
from harness.store.keys import SCHEMA, Keyed, digest, model_identity
from harness.store.store import Store
from tests.report.example import cell_id, make_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RTN = cell_id("rtn", "w4a6")
COHORT = {"device": "AMD EPYC", "torch": "2.13.0+cpu", "diffusers": "0.42.1", "threads": 1}
PROMPT = "7969834dce72a604ed6a0b46051f89263109b4bceb6df3b70b80dc5875e9597b"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Call the command line; gives the exit code and what it printed, errors last."""

    def call(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out + printed.err

    return call


def publish(kind: str, inputs: dict[str, Any], about: dict[str, Any], data: bytes = b"{}") -> Path:
    """An entry byte for byte as 0.1.0 laid it down, under the key that it gave."""
    key = digest(inputs)
    folder = Store().root / kind / key[:2] / key
    folder.mkdir(parents=True)
    (folder / f"{kind}.json").write_bytes(data)
    facts = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest = {
        "schema": 1,
        "kind": kind,
        "key": key,
        "inputs": inputs,
        "about": about,
        "files": {f"{kind}.json": facts},
        "at": "2026-11-30T19:45:54+00:00",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return folder


def old_inputs() -> dict[str, dict[str, Any]]:
    """What keys of 0.1.0 were made from, for the first row of ``--methods rtn``, by kind."""
    spec = model_spec("shapes")
    made_for = {"model": model_identity(spec), "gen": dataclasses.asdict(spec.gen), "seed": 0}
    artifact = made_for | {
        "method": "rtn",
        "version": 1,
        "options": {"group": 0, "modulation": "w"},
        "bits": "w4a6",
        "calibration": None,
    }
    clip = {"quant": "", "gen": made_for["gen"], "prompt": PROMPT, "seed": 0, "cohort": COHORT}
    score = {
        "clip": "e99b" * 16,
        "reference": "e99b" * 16,
        "scorer": "fidelity",
        "asked": {},
        "version": "53f5" * 16,
        "environment": {"torch": "2.13.0+cpu", "torchmetrics": "1.9.0"},
    }
    measure = {"rows": [f"{RTN}=2154"], "gen": made_for["gen"], "cohort": COHORT, "protocol": {}}
    found = {
        "pool": made_for | {"suite": "cdf0" * 16, "cohort": COHORT},
        "artifact": artifact,
        "clip": clip,
        "score": score,
        "measure": measure,
    }
    return {kind: {"kind": kind, "schema": 1, **inputs} for kind, inputs in found.items()}


def old_store() -> dict[str, Path]:
    """A store of 0.1.0 with one entry of each kind; their folders by kind."""
    about = {
        "seconds": 7.7,
        "label": "rtn",
        "bits": "w4a6",
        "model": {"name": "shapes", "repo": "shapes"},
    }
    made = {kind: publish(kind, inputs, about) for kind, inputs in old_inputs().items()}
    (made["artifact"] / "artifact.json").write_text("{}")
    root = Store().root
    (root / "tmp").mkdir(exist_ok=True)
    (root / "facts").mkdir()
    (root / "facts" / f"{'0' * 64}.json").write_text('{"name": "rtn", "version": 1}')
    (root / "journal.jsonl").write_text('{"event":"published","kind":"clip"}\n')
    return made


def old_run(folder: Path, artifact: Path) -> Path:
    """A run folder of 0.1.0: its ``run.json`` says nothing of metrics."""
    make_run(folder)
    head = json.loads((folder / "run.json").read_text())
    del head["metrics"]
    head["experiment"] |= {
        "models": [{"name": "shapes", "repo": "shapes", "judge": "shapes"}],
        "suite": "shapes-eval",
    }
    for cell in head["cells"]:
        if cell["id"] == RTN:
            cell["artifact"] = str(artifact)
    (folder / "run.json").write_text(json.dumps(head, indent=1, sort_keys=True) + "\n")
    return folder


def current(n: int) -> Path:
    """An entry of this version."""
    keyed = Keyed.of("clip", {"n": n})
    with Store().build("clip", keyed.key, keyed.inputs) as folder:
        (folder / "f").write_text("x")
    return Store().folder("clip", keyed.key)


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


def test_no_key_of_this_version_finds_what_0_1_0_wrote() -> None:
    made, store = old_store(), Store()
    for kind, inputs in old_inputs().items():
        same = {name: value for name, value in inputs.items() if name not in ("kind", "schema")}
        assert store.find(kind, Keyed.of(kind, same).key) is None
        assert made[kind].is_dir(), "what is not looked for is not set aside either"


def test_gc_says_what_earlier_versions_left_and_leaves_it(said: Callable[..., Any]) -> None:
    made = old_store()
    publish("clip", {"kind": "clip", "schema": 1, "n": 0}, {}, b"x" * 3_000_000)
    code, out = said("gc")
    assert code == 0
    assert "6 results (3.0 MB) of earlier versions are never found by this one" in out
    assert "`harness gc --outdated` removes them" in out
    assert all(folder.is_dir() for folder in made.values())


def test_gc_says_nothing_of_earlier_versions_where_there_is_nothing(
    said: Callable[..., Any],
) -> None:
    current(1)
    assert "earlier versions" not in said("gc")[1]
    old_store()
    assert "earlier versions" not in said("gc", "--older-than", "0", "--dry-run")[1]


def test_gc_outdated_removes_what_earlier_versions_left_and_nothing_else(
    said: Callable[..., Any], tmp_path: Path
) -> None:
    now = current(1)
    # Of a version to come, and of whoever made a key without a schema.
    later = publish("clip", {"kind": "clip", "schema": SCHEMA + 1, "n": 2}, {})
    foreign = publish("clip", {"n": 3}, {})
    before = files(tmp_path)
    made = old_store()
    run = old_run(tmp_path / "runs" / "old", made["artifact"])
    kept = files(run) | {p for p in files(Store().root) if "facts" in p.parts}
    assert said("gc", "--outdated", "--dry-run")[0] == 0
    assert all(folder.is_dir() for folder in made.values())
    code, out = said("gc", "--outdated")
    assert code == 0
    assert out.count("outdated: ") == len(made)
    assert f"in {len(made)} folders" in out
    assert "kept" not in out
    assert files(tmp_path) == before | kept
    assert all(folder.is_dir() for folder in (now, later, foreign))
    assert "earlier versions" not in said("gc")[1]


def _of_another(manifest: str) -> str:
    return json.dumps(json.loads(manifest) | {"key": "0" * 64})


def _with_inputs(inputs: Any) -> Callable[[str], str]:
    return lambda manifest: json.dumps(json.loads(manifest) | {"inputs": inputs})


@pytest.mark.parametrize(
    "damage",
    [
        lambda manifest: manifest[: len(manifest) // 2],
        lambda manifest: "",
        lambda manifest: "[]",
        lambda manifest: "\x00\xff",
        lambda manifest: '{"schema": 1}',
        _of_another,
        _with_inputs({"schema": 1}),
        _with_inputs(None),
        _with_inputs(["schema", 1]),
        None,
    ],
)
def test_a_damaged_manifest_is_never_outdated(
    said: Callable[..., Any], damage: Callable[[str], str] | None
) -> None:
    made = old_store()
    hurt = made["clip"] / "manifest.json"
    if damage is None:
        hurt.unlink()
    else:
        hurt.write_text(damage(hurt.read_text()), encoding="latin-1")
    assert "4 results" in said("gc")[1]
    code, out = said("gc", "--outdated")
    assert code == 0
    place = made["clip"].relative_to(Store().root)
    assert f"kept: {place}: its manifest is damaged, so its version is not known" in out
    assert out.count("outdated: ") == 4
    assert (made["clip"] / "clip.json").is_file()


def test_an_entry_that_is_both_outdated_and_unused_is_removed_once(
    said: Callable[..., Any],
) -> None:
    made = old_store()
    (made["clip"] / "manifest.json").unlink()
    code, out = said("gc", "--outdated", "--older-than", "0")
    assert code == 0
    assert "in 5 folders" in out
    assert "kept" not in out
    assert not any(folder.exists() for folder in made.values())


def test_a_dry_run_plans_everything_anew_and_says_why(said: Callable[..., Any]) -> None:
    made = old_store()
    for name, text in (("a", "[]"), ("b", "{}"), ("c", "{")):
        hurt = Store().root / "artifact" / "00" / (name * 64)
        hurt.mkdir(parents=True)
        (hurt / "manifest.json").write_text(text)
    code, out = said("run", "--methods", "rtn", "--bits", "w4a6", "--limit", "1", "--dry-run")
    assert code == 0, out
    assert "3 cells, 3 clips to make, 0 found" in out
    row = next(line for line in out.splitlines() if line.startswith(RTN))
    assert row.split()[1:4] == ["yes", "1", "0"]
    assert f"keys changed (schema 1 to {SCHEMA}) since 2026-11-30" in row
    assert all(folder.is_dir() for folder in made.values())


@pytest.mark.parametrize("cleared", [False, True])
def test_the_commands_that_read_a_run_of_0_1_0_need_nothing_of_the_store(
    said: Callable[..., Any], tmp_path: Path, cleared: bool
) -> None:
    made = old_store()
    run = old_run(tmp_path / "runs" / "old", made["artifact"])
    if cleared:
        assert said("gc", "--outdated")[0] == 0
    code, out = said("report", run, "--format", "md")
    assert code == 0, out
    assert "| fidelity to fp | bits | PSNR dB ↑ | SSIM ↑ |" in out
    assert said("report", run)[0] == 0
    assert said("report", run, "--page", tmp_path / "page.md")[0] == 0
    assert "PSNR dB" in (tmp_path / "page.md").read_text(encoding="utf-8")
    code, out = said("compare", run, "--reference", "rtn", "--metric", "psnr_db")
    assert code == 0, out
    assert "better" in next(line for line in out.splitlines() if "s2q w4a6" in line)
    assert said("show", "run", run)[0] == 0
    assert "metrics" not in json.loads((run / "run.json").read_text()), "reading changes nothing"


def test_an_old_run_is_compared_with_one_of_this_version(
    said: Callable[..., Any], tmp_path: Path
) -> None:
    old = old_run(tmp_path / "old", old_store()["artifact"])
    make_run(tmp_path / "new", offset=3.0)
    code, out = said("compare", old, tmp_path / "new", "--reference", "s2q", "--bits", "w4a6")
    assert code == 0, out
    assert "psnr_db" in out


def test_a_row_whose_artifact_was_cleared_says_so(said: Callable[..., Any], tmp_path: Path) -> None:
    made = old_store()
    run = old_run(tmp_path / "old", made["artifact"])
    said("gc", "--outdated")
    code, out = said("verify", run)
    assert code == 1
    assert out.startswith(f"FAIL  {RTN}: ")
    assert "is gone from the store" in out
    for command in ("verify", "diagnose"):
        code, out = said(command, f"{run}:{RTN}")
        assert code != 0
        assert out.splitlines() == [
            f"error: '{made['artifact']}' is gone from the store",
            "hint: run the experiment again",
        ]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"about": null, "inputs": {"gen": {}}}'])
def test_an_artifact_beside_a_damaged_manifest_is_two_lines(
    said: Callable[..., Any], text: str
) -> None:
    artifact = old_store()["artifact"]
    (artifact / "manifest.json").write_text(text)
    for command in ("verify", "diagnose"):
        code, out = said(command, artifact)
        assert code != 0
        first, second = out.splitlines()
        assert first.startswith(f"error: '{artifact / 'manifest.json'}' is damaged (")
        assert second.startswith("hint: run the experiment again")


def test_doctor_counts_what_earlier_versions_left(said: Callable[..., Any]) -> None:
    old_store()
    assert "store: 5 entries" in said("doctor")[1]
    assert "Traceback" not in said("doctor", "--report")[1]
