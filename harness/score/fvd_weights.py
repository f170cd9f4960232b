"""The weights of torchvision's r3d_18 on this machine: fetched by a command, never by a run.

Importing this module needs no torch.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import HarnessError, InfraError
from harness.store.keys import file_digest
from harness.store.provenance import package_version

# torchvision.models.video.R3D_18_Weights.KINETICS400_V1; the digits begin the file's sha256
CHECKPOINT, SHA256_PREFIX = "r3d_18-b3b3357e.pth", "b3b3357e"
COMMAND = "harness fetch fvd-weights"
EXTRA = "torchvision is not installed (pip install 'vdit-quant-harness[fvd]')"


def fvd_missing() -> str:
    """Why the Frechet distance cannot be computed, in one line; empty where it can."""
    if not package_version("torchvision"):
        return EXTRA
    path = checkpoint_path()
    return "" if path.is_file() else f"r3d_18 weights are not at {path}: {COMMAND}"


def fvd_identity() -> str:
    """What the features depend on beside libraries and clip: for keys of scores."""
    return CHECKPOINT


def checkpoint_path() -> Path:
    """Where torch keeps what ``torch.hub.load_state_dict_from_url`` fetched."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    torch_home = Path(os.environ.get("TORCH_HOME") or Path(cache_home) / "torch")
    return torch_home / "hub" / "checkpoints" / CHECKPOINT


def check_checkpoint() -> None:
    """Read the weights' file and hold it against the digest in its name.

    Raises:
        InfraError: It is not there or holds something else.
    """
    path = checkpoint_path()
    if not path.is_file():
        raise InfraError(f"r3d_18 weights are not at {path}", COMMAND)
    if not file_digest(path).startswith(SHA256_PREFIX):
        raise InfraError(f"'{path}' is not torchvision's file", f"delete it, then {COMMAND}")


def fetch_fvd() -> str:
    """Download the weights to where torch keeps them, with a progress bar; check their digest.

    Returns:
        One line: what it is and where.

    Raises:
        HarnessError: torchvision is missing or the server cannot be reached.
    """
    if not package_version("torchvision"):
        raise HarnessError("r3d_18 is a network of torchvision", EXTRA)
    if not checkpoint_path().is_file():
        from torch.hub import load_state_dict_from_url
        from torchvision.models.video import R3D_18_Weights

        url = R3D_18_Weights.KINETICS400_V1.url
        try:
            load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as cause:
            raise HarnessError(
                f"'{url}' cannot be fetched: {cause}", "check the network, then run it again"
            ) from cause
    check_checkpoint()
    path = checkpoint_path()
    return f"r3d_18, Kinetics-400, {path.stat().st_size / 1e6:.0f} MB: {path}"
