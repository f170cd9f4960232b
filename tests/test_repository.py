"""The repository as a whole: packaging, the README's commands, what must not be in it."""

from __future__ import annotations

import configparser
import csv
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("harness", "methods", "baselines", "prompts", "results")


def ci_variable(name: str) -> str:
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    found = re.search(rf"^{name}='(.*)'$", text, flags=re.MULTILINE)
    assert found, f".ci/run does not set {name}"
    return found[1]


def test_every_package_in_the_tree_is_named_in_pyproject_and_no_other():
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in PACKAGES
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_every_entry_point_can_be_loaded():
    from importlib.metadata import EntryPoint

    groups = PROJECT["project"]["entry-points"]
    assert set(groups["harness.methods"]) >= {"s2q", "ptq4dit", "rtn", "rtn-gptq", "fp", "control"}
    assert set(groups["harness.metrics"]) >= {"fidelity", "lpips", "oracle"}
    for group, points in groups.items():
        for name, value in points.items():
            assert EntryPoint(name=name, value=value, group=group).load().name == name


def test_the_readme_has_the_test_command_that_ci_runs():
    command = f"{ci_variable('install')} && {ci_variable('test')}"
    assert f"    {command}\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_the_main_command_on_one_line():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    main = "harness run --methods s2q,ptq4dit --bits w4a6"
    assert any(line.startswith("    python3 -m venv") and line.endswith(main) for line in lines)


def test_the_readmes_experiment_file_can_be_planned():
    from harness.method import resolve_options
    from harness.plan.experiment import ExperimentFile, Flags, resolve
    from harness.plan.registry import load_method

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    experiment = resolve(ExperimentFile.model_validate(tomllib.loads(block[1])), Flags())
    labels = [row.method.label for row in experiment.rows]
    assert len([label for label in labels if label.startswith("s2q")]) == 5
    for row in experiment.rows:
        resolve_options(load_method(row.method.name), dict(row.method.options))


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*.toml")), ids=lambda p: p.name)
def test_every_experiment_file_names_known_methods_and_options(path):
    from harness.method import resolve_options
    from harness.plan.experiment import Flags, resolve
    from harness.plan.experiment_file import load_file
    from harness.plan.registry import load_method

    experiment = resolve(load_file(path), Flags())
    seen = set()
    for row in experiment.rows:
        options = resolve_options(load_method(row.method.name), dict(row.method.options))
        variant = (row.method.name, options, row.method.calibration_seed, row.bits)
        assert variant not in seen, f"{row.method.label} repeats another row"
        seen.add(variant)


def test_the_licence_is_whole_and_the_declared_one():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def ci_linters() -> list[str]:
    """Commands of the steps "lint" and "types" of .ci/run, without the environment's folder."""
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    steps = dict(re.findall(r'^step "([^"]+)"\n(.*?)(?=^step |\Z)', text, re.DOTALL | re.MULTILINE))
    lines = f"{steps['lint']}\n{steps['types']}".splitlines()
    return [line.removeprefix(".venv/bin/") for line in lines if line]


def tox_lines(section: str, key: str = "commands") -> list[str]:
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    return tox[section][key].strip().splitlines()


def test_commit_hooks_and_tox_run_the_linters_of_continuous_integration():
    wanted = ci_linters()
    assert "mypy" in wanted
    assert tox_lines("testenv:lint") + tox_lines("testenv:type") == wanted
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    hooks = [hook for repo in yaml.safe_load(text)["repos"] for hook in repo["hooks"]]
    assert [hook["entry"] for hook in hooks] == wanted
    for hook in hooks:  # the environment's own, on the whole tree: one version, one answer
        assert hook["language"] == "system"
        assert hook["pass_filenames"] is False


def test_everything_that_tox_and_the_hooks_call_comes_with_the_dev_extra():
    extras = PROJECT["project"]["optional-dependencies"]
    own = re.compile(rf"{PROJECT['project']['name']}\[(.*)\]")
    waiting, found = ["dev"], set()
    while waiting:
        for wanted in extras[waiting.pop()]:
            if inner := own.fullmatch(wanted):
                waiting += inner[1].split(",")
            else:
                found.add(re.split(r"[\[<>=!~ ]", wanted)[0])
    calls = {line.split()[0] for line in [*ci_linters(), *tox_lines("testenv:docs")]}
    distributions = {"lint-imports": "import-linter"}
    assert {distributions.get(name, name) for name in calls} | {"pre-commit", "tox"} <= found


def test_tox_builds_the_pages_with_what_the_docs_extra_names():
    wanted = PROJECT["project"]["optional-dependencies"]["docs"]
    assert tox_lines("testenv:docs", "deps") == wanted


def test_tox_and_the_classifiers_name_the_same_pythons():
    tested = re.findall(r"\bpy3(\d+)\b", " ".join(tox_lines("tox", "env_list")))
    begin = "Programming Language :: Python :: 3."
    named = [c.removeprefix(begin) for c in PROJECT["project"]["classifiers"] if begin in c]
    assert tested == named
    assert PROJECT["project"]["requires-python"] == f">=3.{named[0]}"
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py3{named[0]}"
    assert PROJECT["tool"]["mypy"]["python_version"] == f"3.{named[0]}"


def test_the_ci_script_can_be_executed():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


def test_nothing_in_the_tree_is_pickled():
    # The scoring worker calls the official package, which reads the checkpoints that its authors
    # publish as it does everywhere; their digests are checked or locked before.
    foreign = ROOT / "harness" / "vbench" / "foreign"
    for top in PACKAGES:
        for path in (ROOT / top).rglob("*.py"):
            if path.is_relative_to(foreign):
                continue
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"^\s*(import pickle|from pickle)", text, flags=re.MULTILINE), path
            for call in re.findall(r"torch\.load\([^)]*\)", text):
                assert "weights_only=True" in call, path


def test_rendering_a_table_needs_no_torch(tmp_path):
    from tests.report.example import make_run, write_clips

    write_clips(make_run(tmp_path, prompts=("p0", "p1")))
    code = (
        "import sys; from pathlib import Path; from rich.console import Console;"
        "from harness.report import render_run; render_run(Path(sys.argv[1]), Console());"
        "sys.exit(', '.join({'torch', 'diffusers', 'pandas'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that no scratch folder of setuptools stays in the tree."""
    source = tmp_path_factory.mktemp("tree")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    subprocess.run([*pip, *offline, str(source)], check=True, capture_output=True, text=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    wanted = {
        str(path.relative_to(ROOT))
        for top in PACKAGES
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == wanted


def test_the_wheel_works_outside_the_tree(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import harness, sys; from harness.cli.main import main; print(harness.__file__);"
        "main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "list", "suites"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(site))
    assert "shapes-eval" in done.stdout


def test_the_wheels_record_lists_every_file_with_a_digest(wheel):
    with zipfile.ZipFile(wheel) as archive:
        record = next(n for n in archive.namelist() if n.endswith(".dist-info/RECORD"))
        rows = list(csv.reader(archive.read(record).decode().splitlines()))
    assert {r[0] for r in rows if not r[1]} == {record}


def test_the_shipped_weights_stay_small():
    folder = ROOT / "harness" / "models" / "shapes" / "weights"
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) <= 40e6
