"""One measurement of ``tools/memory_bench.py``, run against the tree that PYTHONPATH names.

    python tools/memory_probe.py training|packed|make FOLDER|load FOLDER

prints one line of JSON. It uses what releases since 0.2 have, so that an older tree can be measured
by the same command; the counter of storages is always the one of this tree.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

TRACED = Path(__file__).resolve().parents[1] / "harness/measure/traced.py"
HEADS, HEAD, EMBEDDED = 30, 64, 512  # of CogVideoX-2B: defaults of its class in diffusers
WIDTH = HEADS * HEAD
TOKENS, TEXT = (2048, 3072), 64  # below, the peak is that of rounding the weights
LAYERS, BLOCKS, CALL_TOKENS = 2, 4, 512


def _tracer() -> Any:
    spec = importlib.util.spec_from_file_location("traced", TRACED)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PeakTensors


def training() -> dict[str, Any]:
    """Bytes a token of training a block, those that do not depend on tokens, and seconds a step."""
    block = real_block()
    peaks, seconds = [], []
    for tokens in TOKENS:
        peak, taken = train(block, tokens)
        peaks.append(peak)
        seconds.append(taken)
    slope = (peaks[1] - peaks[0]) / (TOKENS[1] - TOKENS[0])
    return {
        "bytes_a_token": slope,
        "fixed_bytes": peaks[0] - slope * TOKENS[0],
        "seconds": seconds[1],
        "block_weights": sum(p.numel() for p in block.parameters() if p.dim() == 2),
    }


def real_block() -> Any:
    """A block of CogVideoX-2B with random weights."""
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

    torch.manual_seed(0)
    block = CogVideoXBlock(
        dim=WIDTH, num_attention_heads=HEADS, attention_head_dim=HEAD, time_embed_dim=EMBEDDED,
        attention_bias=True,
    )  # fmt: skip
    return block.eval().requires_grad_(False)


def inputs(tokens: int) -> dict[str, torch.Tensor]:
    """Noise in the place of what the block reads."""
    return {
        "hidden_states": torch.randn(1, tokens - TEXT, WIDTH),
        "encoder_hidden_states": torch.randn(1, TEXT, WIDTH),
        "temb": torch.randn(1, EMBEDDED),
    }


def train(block: Any, tokens: int, *, steps: int = 1) -> tuple[int, float]:
    """Train a block against itself; peak bytes and seconds, statistics counted in."""
    from harness.bits import BitSpec
    from harness.method import QuantContext
    from harness.models.block_input import BlockInput, Sample
    from harness.models.families import family_by_name
    from harness.models.families.base import target_groups
    from harness.quant.calibration.capture import run_block
    from harness.quant.calibration.walk import WalkedBlock
    from harness.quant.learning.block_trainer import BlockTask
    from harness.quant.learning.learned_blocks import BlockLearner, LearnedOptions

    family = family_by_name("cogvideox")
    streams = inputs(tokens)
    given = BlockInput(sample=Sample(0, 0), fixed={"temb": streams.pop("temb")}, streams=streams)
    with torch.no_grad():
        target = given.with_streams(run_block(block, family, given))
    ctx = QuantContext(
        bits=BitSpec.parse("w4a4"), options=LearnedOptions(samples=1, epochs=steps), family=family,
        device=torch.device("cpu"),
    )  # fmt: skip
    walk: Any = SimpleNamespace(say=lambda *_: None, alive=lambda: None, ctx=ctx)
    walked = WalkedBlock(
        index=0, name="block", block=block, groups=target_groups(family, block),
        inputs=[given], targets=[target], given=[given], walk=walk,
    )  # fmt: skip
    started = time.perf_counter()
    with _tracer()() as memory:
        BlockLearner(ctx).learn_block(walked, BlockTask(inputs=[given], targets=[target]))
    return memory.peak, time.perf_counter() - started


def packed() -> dict[str, Any]:
    """Resident bytes a weight of simulated 4-bit layers, and extra bytes of a call."""
    from harness.quant.layers.activation import ActivationSpec
    from harness.quant.layers.linear import WeightSpec, quantize_linear

    x = torch.randn(1, CALL_TOKENS, 4 * WIDTH, dtype=torch.bfloat16)
    layers = []
    with torch.no_grad(), _tracer()() as memory:
        for _ in range(LAYERS):
            linear = torch.nn.Linear(4 * WIDTH, WIDTH, dtype=torch.bfloat16)
            layers.append(quantize_linear(linear, WeightSpec(bits=4), ActivationSpec(bits=8)))
            del linear
        extra, started = 0, time.perf_counter()
        for layer in layers:
            gc.collect()
            before, memory.peak = memory.live, memory.live
            y = layer(x)
            extra = max(extra, memory.peak - before - y.nbytes)
            del y
        seconds = time.perf_counter() - started
        gc.collect()
        resident = memory.live
    weights = LAYERS * 4 * WIDTH * WIDTH
    return {
        "bytes_a_weight": resident / weights,
        "extra_over_input": (extra - 2 * 4 * WIDTH * WIDTH) / x.nbytes,
        "seconds": seconds / LAYERS,
    }


def make(folder: Path) -> dict[str, Any]:
    """Write a denoiser of real width at 16 bits and its 4-bit artifact; beside them, small ones."""
    _make(folder / "small", num_attention_heads=2, num_layers=1)
    return {"parameters": _make(folder / "real", num_attention_heads=HEADS, num_layers=BLOCKS)}


def _make(folder: Path, **sizes: int) -> int:
    from diffusers import CogVideoXTransformer3DModel

    from harness.quant.layers.activation import ActivationSpec
    from harness.quant.layers.artifact import save_artifact
    from harness.quant.layers.layers import replace_module_
    from harness.quant.layers.linear import WeightSpec, quantize_linear

    torch.manual_seed(0)
    # a small clip: the table of its positions is as large for four blocks as for thirty
    clip = {"sample_frames": 9, "sample_width": 16, "sample_height": 16}
    denoiser = CogVideoXTransformer3DModel(**sizes, **clip).to(torch.bfloat16).eval()
    denoiser.requires_grad_(False).save_pretrained(folder / "model")
    count = sum(p.numel() for p in denoiser.parameters())
    for i, block in enumerate(denoiser.transformer_blocks):
        names = [n for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)]
        for name in names:
            layer = quantize_linear(
                block.get_submodule(name), WeightSpec(bits=4), ActivationSpec(bits=8)
            )
            replace_module_(denoiser, f"transformer_blocks.{i}.{name}", layer)
    (folder / "artifact").mkdir()
    about = {"model_class": "CogVideoXTransformer3DModel", "family": "cogvideox", "bits": "w4a8"}
    save_artifact(denoiser, folder / "artifact", about)
    return count


def load(folder: Path) -> dict[str, Any]:
    """Peak by which the process grows while it loads the artifact of ``make``.

    The small one is loaded before, so that what is imported does not count.
    """
    from harness.measure.memory import peak_memory

    _load(folder / "small")
    gc.collect()
    with peak_memory("cpu") as peak:
        before = peak()
        held = _load(folder / "real")
        most = peak() - before
    del held
    return {"peak_bytes": most}


def _load(folder: Path) -> torch.nn.Module:
    from diffusers import CogVideoXTransformer3DModel

    from harness.quant.layers import artifact

    whole = getattr(artifact, "open_quantized_denoiser", None)
    if whole is not None:
        return whole(folder / "artifact")
    held = CogVideoXTransformer3DModel.from_pretrained(folder / "model", dtype=torch.bfloat16)
    artifact.load_artifact_(held, folder / "artifact")
    return held


def main(what: str, *folder: str) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    calls: dict[str, Any] = {"training": training, "packed": packed, "make": make, "load": load}
    print(json.dumps(calls[what](*(Path(place) for place in folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])
