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
from harness.method import Method, QuantContext

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


@pytest.fixture
def rotated(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from rotated import Rotated

    return Rotated()


def test_the_plugin_satisfies_the_protocol(rotated):
    assert isinstance(rotated, Method)


def quantized_error(rotated, tiny_pipeline_folder, bits: str) -> float:
    """Relative output error of the quantized miniature transformer on one random input."""
    from diffusers import CogVideoXTransformer3DModel

    from harness.models.families import family_by_name as family_of
    from harness.quant.layers.apply import targets

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
    wanted = set(targets(family, reference))
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
