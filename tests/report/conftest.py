from __future__ import annotations

import pytest

from harness.report import stats


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """The tables' content does not depend on many; the statistics have tests of their own."""
    monkeypatch.setattr(stats, "RESAMPLES", 499)
