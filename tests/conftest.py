"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TINY_TEXT_TOKENS = 8


def pytest_configure(config: pytest.Config) -> None:
    """Interpret Triton's kernels, which needs no GPU, unless ``-m gpu`` asks for one.

    Triton reads the variable when it is imported, which any test file may do first.
    """
    if not re.search(r"(?<!not )\bgpu\b", config.option.markexpr):
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what loads gigabytes, unless it is asked for: ``-m heavy``."""
    if "heavy" in config.option.markexpr:
        return
    unasked = pytest.mark.skip(reason="loads models of gigabytes; run it with -m heavy")
    for item in items:
        if item.get_closest_marker("heavy"):
            item.add_marker(unasked)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let the programs that tests start hear Ctrl-C.

    A shell that starts the tests in the background has them ignore SIGINT, children inherit that,
    and Python then installs no handler.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def default_dtype_is_left_alone() -> Iterator[None]:
    """A default dtype that a test leaves behind would change every test after it."""
    yield
    if (torch := sys.modules.get("torch")) is not None:
        left, usual = torch.get_default_dtype(), torch.float32
        torch.set_default_dtype(usual)
        assert left == usual, f"the default dtype was left at {left}"


def build_tiny_pipeline(folder: Path, *, seed: int = 0) -> Path:
    """Write the miniature of ``harness.testing.conformance`` in diffusers format."""
    from harness.testing.conformance import tiny_pipeline

    tiny_pipeline(seed).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature CogVideoX pipeline with random weights, made once a session."""
    return build_tiny_pipeline(tmp_path_factory.mktemp("models") / "tiny")
