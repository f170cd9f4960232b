"""One miniature for all tests of baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.testing.conformance import make_bench

if TYPE_CHECKING:
    from harness.testing.conformance import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench("cogvideox", tmp_path_factory.mktemp("baselines"))
