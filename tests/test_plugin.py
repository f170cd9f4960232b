"""A method in a package of its own: installed, found, run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.bits import BitSpec
from harness.errors import UsageError
from harness.method import Method, QuantContext
from harness.plan import registry

FOLDER = Path(__file__).parent / "plugin"
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The plug-in installed into a folder, from a copy so that the tree stays clean."""
    source = tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(FOLDER, source, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, *offline, str(source)], check=True, capture_output=True, text=True)
    return target


def harness(site: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from harness.cli.main import main; main()", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "HARNESS_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_installed_plugin_is_listed_beside_the_own_methods(installed, tmp_path):
    text = harness(installed, tmp_path, "list", "methods")
    names = {line.split()[0] for line in text.splitlines() if line}
    assert {"rotated", "s2q", "fp"} <= names


def test_show_method_prints_the_plugins_source(installed, tmp_path):
    assert "QuaRot, its rotation only" in harness(installed, tmp_path, "show", "method", "rotated")


# The documented plug-in, and the one that the documents of 0.1.0 had: a class of its own, a plain
# dataclass for options, the toolkit under the names of that day.
@pytest.fixture(params=["rotated", "rotated_0_1_0"])
def rotated(monkeypatch, request):
    monkeypatch.syspath_prepend(str(FOLDER))
    return registry.load_method(f"{request.param}:Rotated")


def test_only_the_documented_plugin_has_the_contract_as_its_base(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    assert isinstance(registry.load_method("rotated:Rotated"), Method)
    assert not isinstance(registry.load_method("rotated_0_1_0:Rotated"), Method)


@pytest.mark.parametrize("module", ["rotated", "rotated_0_1_0"])
def test_a_plugin_is_planned_with_its_options_checked(module, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))

    def describe(chosen):
        return registry.describe(
            f"{module}:Rotated", chosen, "cogvideox", ("w4a4",), tmp_path, quick=True
        )

    facts = describe({"group": 8})
    assert facts.options["group"] == 8
    assert facts.quick == {}
    assert facts.unsupported == {}
    assert not facts.needs_calibration
    with pytest.raises(UsageError, match="option"):
        describe({"group": "wide"})
    with pytest.raises(UsageError, match="grup"):
        describe({"grup": 8})


def test_what_the_old_plugin_leaves_is_what_the_new_one_leaves(monkeypatch, tiny_pipeline_folder):
    monkeypatch.syspath_prepend(str(FOLDER))
    errors = [
        quantized_error(registry.load_method(f"{module}:Rotated"), tiny_pipeline_folder, "w4a4")
        for module in ("rotated", "rotated_0_1_0")
    ]
    assert errors[0] == errors[1]


def quantized_error(rotated, tiny_pipeline_folder, bits: str) -> float:
    """Relative output error of the quantized miniature transformer on one random input."""
    from diffusers import CogVideoXTransformer3DModel

    from harness.models.families import family_by_name as family_of
    from harness.models.families.base import target_linears

    def load() -> nn.Module:
        folder = tiny_pipeline_folder
        return CogVideoXTransformer3DModel.from_pretrained(folder, subfolder="transformer").eval()

    reference, model = load(), load()
    family = family_of("cogvideox")
    ctx = QuantContext(
        bits=BitSpec.parse(bits),
        options=rotated.Options(),
        family=family,
        device=torch.device("cpu"),
        data_free=True,
    )
    wanted = set(target_linears(family, reference))
    report = rotated.quantize_(model, ctx)
    assert {layer.name for layer in report.layers} == wanted
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 8, reference.config.text_embed_dim, generator=generator)
    latents = torch.randn(1, 3, reference.config.in_channels, 8, 8, generator=generator)
    with torch.inference_mode():
        outputs = [
            m(latents, text, torch.tensor([500]), return_dict=False)[0] for m in (reference, model)
        ]
    return float((outputs[1] - outputs[0]).norm() / outputs[0].norm())


def test_without_rounding_the_plugin_changes_nothing(rotated, tiny_pipeline_folder):
    assert quantized_error(rotated, tiny_pipeline_folder, "w16a16") < 1e-4


def test_fewer_bits_cost_more(rotated, tiny_pipeline_folder):
    wide, narrow = (quantized_error(rotated, tiny_pipeline_folder, b) for b in ("w8a8", "w4a4"))
    assert 0 < wide < narrow / 4


def test_the_documented_method_is_the_tested_one_and_short():
    page = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    code = (FOLDER / "rotated.py").read_text(encoding="utf-8")
    assert f"```python\n{code}```" in page
    assert f"```toml\n{(FOLDER / 'pyproject.toml').read_text(encoding='utf-8')}```" in page
    assert len(code.splitlines()) < 40
