"""A worker's signs of life between its reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from harness.run import alive
from harness.run.alive import Pulse, calls_said

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def pulse(told: list[str], monkeypatch: pytest.MonkeyPatch) -> Pulse:
    monkeypatch.setattr(alive, "_bytes_moved", lambda: 0)
    return Pulse(lambda: told.append("alive"))


def test_a_process_that_does_nothing_shows_no_life(pulse: Pulse, told: list[str]) -> None:
    pulse.look()
    pulse.look()
    assert told == []


def test_a_module_that_runs_is_life_while_it_is_felt(pulse: Pulse, told: list[str]) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pulse.feeling_modules():
        model(torch.zeros(1, 2))
        pulse.look()
        pulse.look()
    assert told == ["alive"]
    model(torch.zeros(1, 2))
    pulse.look()
    assert told == ["alive"]


@pytest.mark.skipif(not alive._IO.exists(), reason="only Linux counts the bytes of a process")
def test_bytes_that_are_written_are_life_and_waiting_is_none(
    tmp_path: Path, told: list[str]
) -> None:
    pulse = Pulse(lambda: told.append("alive"))
    pulse.look()
    assert told == []
    (tmp_path / "shard").write_bytes(b"0" * 2 * alive.LEAST_BYTES)
    pulse.look()
    assert told == ["alive"]


def test_a_process_that_computes_is_alive_where_nothing_may_be_hooked(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = iter((0.0, 0.0, alive.INTERVAL_S))
    monkeypatch.setattr(alive, "_bytes_moved", lambda: 0)
    monkeypatch.setattr(Pulse, "_computed", lambda self: next(spent))
    pulse = Pulse(lambda: told.append("alive"), computing=True)
    pulse.look()
    assert told == []
    pulse.look()
    assert told == ["alive"]


def test_the_thread_tells_by_itself(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "INTERVAL_S", 0.01)
    pulse = Pulse(lambda: told.append("alive"))
    with pulse.running():
        for _ in range(500):
            pulse.beat()
            if pulse._ended.wait(0.01) or told:
                break
    assert told


def test_each_call_of_the_denoiser_is_reported(told: list[str]) -> None:
    model = nn.Linear(2, 2)
    with calls_said(model, lambda share, text: told.append(f"{share} {text}"), 0.5, "clip 3"):
        model(torch.zeros(1, 2))
        model(torch.zeros(1, 2))
    model(torch.zeros(1, 2))
    assert told == ["0.5 clip 3, denoiser call 1", "0.5 clip 3, denoiser call 2"]
