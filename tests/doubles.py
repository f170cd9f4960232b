"""Stand-ins that are light: a model folder without a model, and methods that fail on purpose.

The methods are named on the command line as ``tests.doubles:Crash``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import BitSpec, QuantReport, Reproduction, Unsupported

if TYPE_CHECKING:
    from torch import nn

    from harness.api import QuantContext

PARAMETERS = 24


def write_model_folder(folder: Path) -> Path:
    """A folder that planning takes for a CogVideoX pipeline; it cannot be loaded."""
    parts = {
        "model_index.json": {
            "_class_name": "CogVideoXPipeline",
            "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5Tokenizer"],
            "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLCogVideoX"],
        },
        "scheduler/scheduler_config.json": {},
        "text_encoder/config.json": {},
        "tokenizer/tokenizer_config.json": {},
        "transformer/config.json": {
            "sample_height": 8,
            "sample_width": 8,
            "sample_frames": 9,
            "max_text_seq_length": 8,
            "use_rotary_positional_embeddings": True,
        },
        "vae/config.json": {"block_out_channels": [8, 8]},
    }
    for name, content in parts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    header = json.dumps({"w": {"dtype": "F16", "shape": [4, 6], "data_offsets": [0, 48]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(48)
    for name in ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model"):
        (folder / f"{name}.safetensors").write_bytes(weights)
    (folder / "text_encoder/model.safetensors").write_bytes(weights)
    return folder


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyOptions:
    """Options of every toy."""

    strength: float = 0.5
    rounds: int = 3
    names: tuple[str, ...] = ("a", "b")


class Toy:
    """Data-free; its worker is faked wherever it is used."""

    name = "toy"
    version = 1
    Options = ToyOptions
    needs_calibration = False
    unquantized = False
    reproduction = Reproduction(title="none", source="tests", code="none")

    def supports(self, family: str, bits: BitSpec) -> Unsupported | None:
        del family
        return Unsupported(reason="toys have two bits or more than three") if bits.w == 3 else None

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        raise NotImplementedError("a toy is only planned")


class Switched(Toy):
    """Its faked worker leaves a step policy."""


class Calibrated(Toy):
    """Asks for recorded trajectories."""

    needs_calibration = True


class Crash(Toy):
    """Dies of a segmentation fault."""

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        ctypes.string_at(0)
        raise AssertionError("unreachable")


class Killed(Toy):
    """Is killed, as the kernel does when memory runs out."""

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


class Hungry(Toy):
    """Asks for more memory than there is."""

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        import torch

        torch.empty(1 << 60, dtype=torch.uint8)
        raise AssertionError("unreachable")


class Wrong(Toy):
    """Has a bug."""

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        raise ZeroDivisionError("division by zero in a method")


class FullDisk(Toy):
    """Writes to a disk that is full."""

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")
        raise AssertionError("unreachable")


class Slow(Toy):
    """Never ends."""

    def quantize_(self, transformer: nn.Module, ctx: QuantContext) -> QuantReport:
        time.sleep(3600)
        raise AssertionError("unreachable")


class NotAMethod:
    """Lacks nearly everything."""

    name = "not-a-method"


def as_any(value: object) -> Any:
    """Hide a type that a test gets wrong on purpose."""
    return value
