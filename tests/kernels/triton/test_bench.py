"""The timing script says in one line that there is nothing to time on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch


def test_without_a_gpu_one_line_and_a_status_of_its_own() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    script = Path(__file__).parents[3] / "tools" / "triton_bench.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.splitlines() == [
        "no CUDA device: the Triton kernels are timed on a GPU only"
    ]
