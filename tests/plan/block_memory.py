"""Peak memory of a real-width block beside its estimate, as JSON; run by ``test_memory``."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel

from harness.measure.memory import peak_memory
from harness.models.parts import Part
from harness.plan.memory import block_bytes, sizes_of
from harness.spec import GenSpec

TEXT = 226
M_MMAP_THRESHOLD = -3  # malloc.h


def main(device: str, tokens: int) -> None:
    """Run a block of CogVideoX-2B once and print what it took."""
    if device == "cpu":
        # large tensors then come from the system and go back to it when they are freed
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    torch.set_num_threads(1)
    made = CogVideoXTransformer3DModel(num_layers=1)
    block = made.transformer_blocks[0].to(device).eval()
    dtype = "float32"
    if device != "cpu":
        block, dtype = block.half(), "float16"
    kind = getattr(torch, dtype)
    given: dict[str, Any] = {
        "hidden_states": torch.randn(1, tokens - TEXT, 1920, device=device, dtype=kind),
        "encoder_hidden_states": torch.randn(1, TEXT, 1920, device=device, dtype=kind),
        "temb": torch.randn(1, 512, device=device, dtype=kind),
    }
    with torch.no_grad():
        block(**{k: v[:, :64] if v.dim() == 3 else v for k, v in given.items()})  # allocates once
        gc.collect()
        with peak_memory(device) as peak:
            before = peak()
            block(**given)
            measured = peak() - before
    with torch.device("meta"):
        vae = AutoencoderKLCogVideoX()
    gen = GenSpec(height=480, width=720, frames=49, fps=8, steps=1, guidance=1.0, dtype=dtype)
    parts = [
        Part(name="transformer", kind="", parameters=0, config=dict(made.config)),
        Part(name="vae", kind=type(vae).__name__, parameters=0, config=dict(vae.config)),
    ]
    sizes = sizes_of("cogvideox", gen, parts)
    assert sizes is not None
    # its input, which was there before, is counted in by the estimate
    own = sum(value.nbytes for value in given.values())
    print(json.dumps({"measured": measured + own, "estimate": block_bytes(sizes, tokens)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
