"""docs/real-models.md is what its command writes, from configs of the size that is published."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
# What the name leaves out: CogVideoX-2B's denoiser has 1.7 billion, HunyuanVideo "over 13".
ROUNDED = 0.16


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_models", ROOT / "tools/real_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_models"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(tool: ModuleType) -> list[Any]:
    found: list[Any] = tool.real_models()
    return found


@pytest.mark.slow
def test_parameters_are_those_of_the_names(models: list[Any]):
    for model in models:
        for denoiser in model.sizes.denoisers:
            assert denoiser.parameters / 1e9 == pytest.approx(model.published, rel=ROUNDED)


@pytest.mark.slow
def test_tokens_are_those_of_the_papers(models: list[Any]):
    tokens = {model.name: model.sizes.shape.tokens for model in models}
    assert tokens["CogVideoX-2B"] == 17776
    assert tokens["HunyuanVideo"] == 33 * 45 * 80 + 256
    assert tokens["Wan2.1-14B"] == 21 * 45 * 80


@pytest.mark.slow
def test_the_page_is_what_the_command_writes(tool: ModuleType):
    assert (ROOT / "docs/real-models.md").read_text(encoding="utf-8") == tool.page()
