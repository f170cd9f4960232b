"""The scoring interpreter and random weights, for the tests that start it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.vbench import environment
from tests.vbench.driving import run_script


@pytest.fixture(scope="session")
def scoring_python() -> Path:
    """The scoring interpreter of this machine; a session fixture sees the real HARNESS_HOME."""
    found = environment.find()
    if found is None:
        pytest.skip(environment.missing_line())
    return found.python


@pytest.fixture(scope="session")
def random_weights(scoring_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random weights for the light dimensions."""
    folder = tmp_path_factory.mktemp("vbench-weights")
    run_script(scoring_python, Path(__file__).with_name("random_weights.py"), folder)
    return folder
