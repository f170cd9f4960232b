from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.score import lpips

if TYPE_CHECKING:
    from pathlib import Path


def test_without_weights_there_is_a_reason_and_nothing_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(lpips, "package_version", lambda name: "1.0")
    assert lpips.LPIPS().missing() == f"AlexNet weights are not in {tmp_path}/hub/checkpoints"
    frames = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(HarnessError, match="lpips cannot be computed: AlexNet weights"):
        lpips.lpips(frames, frames)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(lpips, "package_version", lambda name: "")
    assert "torchvision is not installed" in lpips.LPIPS().missing()
    monkeypatch.setattr(lpips, "package_version", lambda name: "1.0")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "alexnet-0123.pth").touch()
    assert lpips.LPIPS().missing() == ""
