"""The disk check counts what a calibration spills, on the disk where it spills it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from harness.errors import InfraError
from harness.plan import estimate
from harness.plan.estimate import Estimate, check_space, pool_bytes, scratch_bytes
from harness.store.store import Store
from tests.plan.test_memory import GEN, cogvideox

if TYPE_CHECKING:
    from pathlib import Path

GB = 10**9


def test_scratch_is_inputs_and_targets_of_every_sample():
    sizes = cogvideox()
    sample = (17550 + 226) * 3072 * 2  # tokens, width, bfloat16
    assert scratch_bytes({"samples": 40}, sizes) == 40 * 2 * sample
    assert scratch_bytes({"samples": 40, "inputs": "quantized"}, sizes) == 40 * 4 * sample
    assert scratch_bytes({"samples": 40, "branches": "both"}, sizes) == 40 * 2 * 2 * sample
    assert scratch_bytes({}, sizes) == 0
    assert scratch_bytes({"samples": 40}, None) == 0


def test_a_pool_is_the_latents_of_every_step_and_branch_and_the_texts():
    latent, text = 13 * 16 * 60 * 90, 226 * 4096
    assert pool_bytes(10, GEN, cogvideox()) == 10 * 4 * 2 * (51 * latent + text)
    assert pool_bytes(10, GEN, None) > 0


class _Usage(NamedTuple):
    free: int


def test_each_place_must_hold_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    store = Store()
    store.root.mkdir(parents=True, exist_ok=True)
    folder = tmp_path / "run"
    folder.mkdir()
    free: dict[Any, int] = {store.root: 50 * GB, folder: 2 * GB}
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda place: _Usage(free[place]))
    plan: Any = None
    guess = Estimate(seconds=None, work_s={"a": 1.0}, disk_bytes=40 * GB, copied_bytes=5 * GB)
    check_space(plan, guess, store, folder)  # on one disk the folder takes links alone
    with pytest.raises(InfraError, match="may need 60067 MB"):
        check_space(plan, dataclasses.replace(guess, disk_bytes=60 * GB), store, folder)
