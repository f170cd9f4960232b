"""The pages: links, names and commands in them are true, and the documentation site is built."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import click
import pytest
import yaml

from harness.cli.main import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
# CHANGELOG.md is not among them: it names what was, under the names of its day.
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md")),
    *sorted(DOCS.rglob("*.md")),
]
TOPS = ("harness", "methods", "baselines", "prompts", "results", "tests")
FOLDERS = (*TOPS, "docs", "experiments", "tools", "examples")
# Groups of entry points, which look like modules.
GROUPS = {"harness.methods", "harness.metrics"}
ALWAYS = {"--help", "--debug"}  # options of every command

a_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def prose(page: Path) -> str:
    """A page without its blocks and spans of code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def code(page: Path) -> list[str]:
    """Lines of the blocks of code of a page, and its spans of code."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4}(.*)$", text, flags=re.MULTILINE)
    # A span may be broken over two lines of its paragraph.
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    return [*(line for block in blocks for line in block.splitlines()), *indented, *spans]


@cache
def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them, and those that it names itself."""
    text = page.read_text("utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    found: list[str] = re.findall(r"""<a (?:id|name)=["']([^"']+)""", text)
    for heading in re.findall(r"^#+ +(.*?) *$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        again = sum(a == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", a) is not None
                    for a in found)  # fmt: skip
        found.append(f"{slug}-{again}" if again else slug)
    return set(found)


def broken_links(page: Path) -> list[str]:
    """Links of a page to files or anchors of the repository that are not there."""
    broken = []
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)", prose(page)):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        there = path.exists() and path.is_relative_to(ROOT)
        if not there or (anchor and anchor not in anchors(path)):
            broken.append(target)
    return broken


@a_page
def test_every_link_and_every_anchor_leads_somewhere(page):
    assert broken_links(page) == []


def test_a_link_to_nowhere_would_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "b.md").write_text("# The line, *here*\n\n## `x` again\n\n## `x` again\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[1](b.md#the-line-here) [2](b.md#x-again-1) [3](b.md#x-again-2) [4](c.md) [5](#no)\n"
        "`[6](d.md)` [7](https://example.org)\n\n    [8](e.md)\n\n```\n[9](f.md)\n```\n"
    )
    assert broken_links(page) == ["b.md#x-again-2", "c.md", "#no"]


def navigated(entries: list) -> list[str]:
    """Pages of the navigation, in order."""
    found: list[str] = []
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found += navigated(value) if isinstance(value, list) else [value]
    return found


def test_the_navigation_has_every_page_once():
    pages = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert sorted(navigated(CONFIG["nav"])) == pages


def module_file(name: str) -> Path | None:
    """Source of a module of this repository."""
    stem = ROOT.joinpath(*name.split("."))
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)


def names_something(dotted: str) -> bool:
    """Whether a dotted name is a module, or names that its source knows follow the module's."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        file = module_file(".".join(parts[:length]))
        if file is not None:
            text = file.read_text(encoding="utf-8")
            return all(re.search(rf"\b{re.escape(part)}\b", text) for part in parts[length:])
    return ROOT.joinpath(*parts).is_dir()


def stale_names(page: Path) -> list[str]:
    """Modules and paths that a page names and the tree does not have."""
    text = "\n".join(code(page))
    tops, folders = "|".join(TOPS), "|".join(FOLDERS)
    dotted = re.findall(rf"(?<![\w./-])(?:{tops})(?:\.[A-Za-z_]\w*)+(?![\w/-])", text)
    dotted += re.findall(r"^::: ([\w.]+)", page.read_text("utf-8"), flags=re.MULTILINE)
    paths = re.findall(rf"(?<![\w./$-])(?:{folders})/[\w./-]*(?![\w*<{{])", text)
    stale = [n for n in dotted if n not in GROUPS and not is_file(n) and not names_something(n)]
    return stale + [path for path in paths if not (ROOT / path.rstrip(".")).exists()]


def is_file(name: str) -> bool:
    """Whether what looks like a module is a file: ``results.md``."""
    return name.endswith((".md", ".toml", ".csv", ".json", ".jsonl", ".txt"))


@a_page
def test_no_page_names_a_module_or_a_path_that_is_not_there(page):
    assert stale_names(page) == []


def test_a_stale_name_would_be_seen(tmp_path):
    page = tmp_path / "a.md"
    page.write_text(
        "`harness.keys` `harness.store.keys.digest` `harness.store.keys.nothing`\n"
        "`harness.methods` `methods/gone/a.py`\n"
        "`harness/stages.py` `tests/metrics/` `tools/layout.py` `methods/<name>/` `x/tests/y.py`\n"
        "```python\nfrom methods.s2q.gone import A\nfrom harness.bits import BitSpec\n```\n"
        "::: harness.nowhere\n"
    )
    assert stale_names(page) == [
        *("methods.s2q.gone", "harness.keys", "harness.store.keys.nothing", "harness.nowhere"),
        *("methods/gone/a.py", "harness/stages.py", "tests/metrics/"),
    ]


def wrong_commands(page: Path) -> list[str]:
    """Calls of ``harness`` in a page with a command or an option that it does not have."""
    wrong = []
    for line in code(page):
        for call in re.findall(r"(?<![\w-])harness ([a-z][a-z-]*(?: [^#&|;]*)?)", line):
            words = call.split()
            context = click.Context(cli)
            command: click.Command | None = cli
            while words and isinstance(command, click.Group):
                word = words.pop(0)
                known = word in command.list_commands(context)
                command = command.get_command(context, word) if known else None
            options = {flag for p in command.params for flag in p.opts} if command else set()
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            if command is None or not given <= options | ALWAYS:
                wrong.append(f"harness {call}".strip())
    return wrong


@a_page
def test_every_command_in_a_page_exists_with_its_options(page):
    assert wrong_commands(page) == []


def test_a_wrong_command_would_be_seen(tmp_path):
    page = tmp_path / "a.md"
    page.write_text(
        "`harness run --bits w4a4`, `harness rnu`, `harness fetch vbench --use P`\n"
        "`harness fetch x`, `the harness`\n\n    .venv/bin/harness gc --older 3\n\n"
        "`harness COMMAND --help`\n"
    )
    assert wrong_commands(page) == ["harness gc --older 3", "harness rnu", "harness fetch x"]


def test_the_example_of_an_experiment_file_can_be_planned():
    from harness.method import resolve_options
    from harness.plan.experiment import ExperimentFile, Flags, resolve
    from harness.plan.registry import load_method

    text = (DOCS / "reference" / "experiment-file.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    experiment = resolve(ExperimentFile.model_validate(tomllib.loads(block)), Flags())
    assert sum(row.method.label.startswith("s2q") for row in experiment.rows) == 4
    for row in experiment.rows:
        resolve_options(load_method(row.method.name), dict(row.method.options))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_has_every_page(site):
    for page in navigated(CONFIG["nav"]):
        assert (site / page).with_suffix(".html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("harness", "harness.quantize"),
        ("api", "harness.api.Method.quantize_"),
        ("options", "harness.options.build_options"),
        ("quant/calibration", "harness.quant.calibration.walk.Walk"),
        ("quant/layers", "harness.quant.layers.linear.QuantLinear"),
        ("quant/learning", "harness.quant.learning.block_trainer.train_block"),
        ("quant/rounding", "harness.quant.rounding.gptq.gptq"),
        ("scorer", "harness.score.scorer.Scorer.score"),
        ("testing", "harness.testing.conformance.MethodConformance"),
        ("artifact", "harness.artifact.verify"),
        ("experiment-file", "harness.plan.experiment_file.RunSection.bits"),
    ],
)
def test_a_reference_page_has_what_the_docstrings_say(site, page, name):
    text = (site / "reference" / f"{page}.html").read_text(encoding="utf-8")
    assert f'id="{name}"' in text
