"""Time quantized linears and blocks on kernels against the fastest full precision of this machine.

    python tools/kernel_bench.py [--tokens N] [--rounds N] [--bits w4a6] [--kernel NAME] [--write]

Shapes and blocks are those of CogVideoX-2B and -5B, weights are random, one thread. Full precision
is the fastest of float32 and bfloat16, eager and, where there is a compiler, compiled. Both sides
of a ratio are timed in turns; rounding of activations is part of the kernel's time. ``--write``
puts the tables into docs/performance.md between its marks.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import bootstrap

from harness.bits import BitSpec
from harness.kernels.dispatch import install_kernels_, kernel_states
from harness.kernels.layer import KernelLinear, SharedInput
from harness.kernels.registry import load_kernel
from harness.models.families import family_by_name
from harness.models.families.base import target_groups
from harness.quant.layers.activation import ActivationSpec
from harness.quant.layers.apply import activation_of
from harness.quant.layers.grid import Affine
from harness.quant.layers.layers import replace_module_
from harness.quant.layers.linear import QuantLinear, WeightSpec, quantize_linear
from harness.quant.layers.transform import Hadamard, Kronecker, kronecker_sizes
from harness.store.provenance import cpu_name, package_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = Path(__file__).resolve().parents[1] / "docs/performance.md"
BEGIN, END = "<!-- kernels -->", "<!-- /kernels -->"
WIDTHS = {"CogVideoX-2B": (30, 64), "CogVideoX-5B": (48, 64)}  # heads and their width
EMBEDDED, TEXT = 512, 226  # defaults of diffusers' CogVideoXTransformer3DModel
WARMUP, RESAMPLES = 2, 2000
LEAST_SEEN = (
    0.4  # bytes a weight: fewer are steps and sums alone, the lanes lie where torch sees none
)
BFLOAT, SINGLE = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Timed:
    """Seconds of both sides of one comparison, round by round."""

    exact: list[float]
    kernel: list[float]

    @property
    def ratio(self) -> tuple[float, float, float]:
        """How many times faster the kernel is, by medians, with a 95 % bootstrap interval."""

        def of(a: Any, b: Any, axis: int = -1) -> Any:
            return np.median(a, axis=axis) / np.median(b, axis=axis)

        found = bootstrap(
            (self.exact, self.kernel), of, paired=True, vectorized=True, n_resamples=RESAMPLES,
            method="percentile", rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        return float(of(self.exact, self.kernel)), float(found.low), float(found.high)


def seconds(call: Callable[[], Any]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def in_turns(exact: Callable[[], Any], kernel: Callable[[], Any], rounds: int) -> Timed:
    """Time both in turns, after a warm-up."""
    for _ in range(WARMUP):
        exact()
        kernel()
    taken = [(seconds(exact), seconds(kernel)) for _ in range(rounds)]
    return Timed([a for a, _ in taken], [b for _, b in taken])


def forms(module: torch.nn.Module, call: Callable[..., Any], dtype: torch.dtype) -> Iterator[Any]:
    """The ways to compute a module in a dtype: eager, and compiled where there is a compiler."""
    own = copy.deepcopy(module).to(dtype)
    name = str(dtype).removeprefix("torch.")
    yield f"{name} eager", lambda: call(own)
    if shutil.which("g++") or shutil.which("clang++"):
        fast = torch.compile(own)
        yield f"{name} compiled", lambda: call(fast)


def fastest(module: torch.nn.Module, call: Callable[..., Any]) -> tuple[str, Callable[[], Any]]:
    """The fastest way to compute a module in full precision."""
    taken: dict[str, tuple[float, Callable[[], Any]]] = {}
    for dtype in (BFLOAT, SINGLE):
        for name, way in forms(module, lambda m, d=dtype: call(m, d), dtype):
            for _ in range(WARMUP):
                way()
            taken[name] = min(seconds(way) for _ in range(3)), way
    name = min(taken, key=lambda key: taken[key][0])
    return name, taken[name][1]


def check_exact(kernel: Any, width: int, outputs: int) -> None:
    """Hold the kernel's sums of products to exact ones at a width.

    Raises:
        SystemExit: They differ.
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-31, 32, (65, width), generator=generator)
    codes = torch.randint(-7, 8, (outputs, width), generator=generator)
    layer = QuantLinear(
        weight=WeightSpec(bits=4), codes=codes, grid=Affine(torch.ones(outputs, 1), None),
        bias=None, transforms=(),
        activation=ActivationSpec(bits=6, static_low=-31.0, static_high=31.0),
    )  # fmt: skip
    out = torch.full((65, outputs), torch.nan)
    kernel.product(layer)(kernel.reader([layer])(values.float()).codes, out)
    if not torch.equal(out.double(), values.double() @ codes.double().t()):
        raise SystemExit(f"{kernel.name} is not exact at {width} x {outputs}")


def on_kernel(linear: torch.nn.Linear, kernel: Any, w: WeightSpec, a: ActivationSpec) -> Any:
    """A linear, rounded to nearest, that computes on a kernel; None where it refuses."""
    made = quantize_linear(linear.to(BFLOAT), w, a)
    if kernel.refusal(made):
        return None
    return KernelLinear(made, kernel, SharedInput(kernel.reader([made]), 1))


def held_bytes(layer: KernelLinear) -> str:
    """Bytes a weight that a layer holds; a layout that torch does not see has a byte of them."""
    weights = layer.in_features * layer.out_features
    held = sum(b.numel() * b.element_size() for b in layer.product.buffers()) / weights
    return f"{held if held > LEAST_SEEN else held + 1:.2f}"


def linears(kernel: Any, bits: BitSpec, tokens: int, rounds: int) -> Iterator[list[str]]:
    """A line for each shape of a linear."""
    for model, (heads, head) in WIDTHS.items():
        width = heads * head
        for inputs, outputs in ((width, width), (width, 4 * width), (4 * width, width)):
            check_exact(kernel, inputs, outputs)
            linear = torch.nn.Linear(inputs, outputs).requires_grad_(False)
            xs = {d: torch.randn(1, tokens, inputs).to(d) for d in (BFLOAT, SINGLE)}
            name, exact = fastest(linear, lambda m, d, xs=xs: m(xs[d]))
            layer = on_kernel(linear, kernel, WeightSpec(bits=bits.w), ActivationSpec(bits=bits.a))
            timed = in_turns(exact, lambda layer=layer, xs=xs: layer(xs[BFLOAT]), rounds)
            yield [model, f"{inputs} x {outputs}", name, held_bytes(layer), *_cells(timed)]


GRIDS: dict[str, tuple[WeightSpec, ActivationSpec]] = {
    "w8a8": (WeightSpec(bits=8), ActivationSpec(bits=8)),
    "w6a6": (WeightSpec(bits=6), ActivationSpec(bits=6)),
    "w4a8, zero points": (
        WeightSpec(bits=4, symmetric=False), ActivationSpec(bits=8, symmetric=False),
    ),
    "w4a6, one range for all tokens": (
        WeightSpec(bits=4), ActivationSpec(bits=6, static_low=-4.0, static_high=4.0),
    ),
    "w4a4, weights in groups of 128": (WeightSpec(bits=4, group=128), ActivationSpec(bits=4)),
    "w4a4, weights in groups of 64": (WeightSpec(bits=4, group=64), ActivationSpec(bits=4)),
    "w4a4, both in groups of 128": (
        WeightSpec(bits=4, group=128), ActivationSpec(bits=4, group=128),
    ),
    "w4a4, both in groups of 64": (
        WeightSpec(bits=4, group=64), ActivationSpec(bits=4, group=64),
    ),
}  # fmt: skip


def grids(kernel: Any, tokens: int, rounds: int) -> Iterator[list[str]]:
    """A line for each grid that the kernel takes, all of one width."""
    heads, head = WIDTHS["CogVideoX-5B"]
    width = heads * head
    linear = torch.nn.Linear(width, width).requires_grad_(False)
    xs = {d: torch.randn(1, tokens, width).to(d) for d in (BFLOAT, SINGLE)}
    name, exact = fastest(linear, lambda m, d: m(xs[d]))
    for title, (w, a) in GRIDS.items():
        layer = on_kernel(linear, kernel, w, a)
        if layer is not None:
            timed = in_turns(exact, lambda layer=layer: layer(xs[BFLOAT]), rounds)
            yield [title, name, held_bytes(layer), *_cells(timed)]


def real_block(heads: int, head: int) -> Any:
    """A block of CogVideoX with random weights."""
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

    torch.manual_seed(0)
    block = CogVideoXBlock(
        dim=heads * head, num_attention_heads=heads, attention_head_dim=head,
        time_embed_dim=EMBEDDED, attention_bias=True,
    )  # fmt: skip
    return block.eval().requires_grad_(False)


class Denoiser(torch.nn.Module):
    """One block where a denoiser has its blocks."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.transformer_blocks = torch.nn.ModuleList([block])


def hadamard(width: int, generator: torch.Generator) -> list[torch.nn.Module]:
    """QuaRot's and ViDiT-Q's transform."""
    return [Hadamard.random(width, generator)]


def kronecker(width: int, generator: torch.Generator) -> list[torch.nn.Module]:
    """The form of S2Q-VDiT's and FlatQuant's transform, with orthogonal factors."""
    return [
        Kronecker(*(torch.linalg.qr(torch.randn(n, n, generator=generator))[0]
                    for n in kronecker_sizes(width)))
    ]  # fmt: skip


INPUTS: dict[str, Callable[[int, torch.Generator], list[torch.nn.Module]]] = {
    "plain": lambda width, generator: [],
    "Hadamard": hadamard,
    "two dense factors": kronecker,
}


def quantized_block_(block: Any, bits: BitSpec, transform: Callable[..., Any]) -> Any:
    """Round a block to nearest, its inputs transformed before."""
    family = family_by_name("cogvideox")
    generator = torch.Generator().manual_seed(0)
    for group in target_groups(family, block):
        first = block.get_submodule(group.linears[0])
        turn = [] if group.modulation else transform(first.in_features, generator)
        for name in group.linears:
            spec = activation_of(group, ActivationSpec(bits=bits.a))
            layer = quantize_linear(
                block.get_submodule(name), WeightSpec(bits=bits.w), spec,
                transforms=copy.deepcopy(turn),
            )  # fmt: skip
            replace_module_(block, name, layer)
    return block


def blocks(kernel: Any, bits: BitSpec, tokens: int, rounds: int) -> Iterator[list[str]]:
    """A line for each block and transform of its inputs."""
    for model, (heads, head) in WIDTHS.items():
        width = heads * head
        given = {
            d: {
                "hidden_states": torch.randn(1, tokens, width).to(d),
                "encoder_hidden_states": torch.randn(1, TEXT, width).to(d),
                "temb": torch.randn(1, EMBEDDED).to(d),
            }
            for d in (BFLOAT, SINGLE)
        }
        name, exact = fastest(real_block(heads, head), lambda m, d, given=given: m(**given[d]))
        for title, transform in INPUTS.items():
            block = quantized_block_(real_block(heads, head).to(BFLOAT), bits, transform)
            denoiser = Denoiser(block)
            found = install_kernels_(
                denoiser, family_by_name("cogvideox"), setting=kernel.name,
                device=torch.device("cpu"),
            )  # fmt: skip
            if not found.label.endswith(kernel.name):
                raise SystemExit(f"the block is not computed by {kernel.name}: {found.reasons}")
            timed = in_turns(exact, lambda b=block, given=given: b(**given[BFLOAT]), rounds)
            yield [model, title, name, *_cells(timed)]


def _cells(timed: Timed) -> list[str]:
    def spread(taken: list[float]) -> str:
        low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
        return f"{middle * 1e3:.1f} ± {(high - low) * 1e3:.1f}"

    ratio, low, high = timed.ratio
    return [spread(timed.exact), spread(timed.kernel), f"**{ratio:.2f}x** [{low:.2f}, {high:.2f}]"]


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    dashes = ["---"] * len(heads)
    return [f"| {' | '.join(row)} |" for row in (heads, dashes, *rows)]


def mean_ratio(rows: list[list[str]]) -> float:
    """Geometric mean of the ratios."""
    return statistics.geometric_mean([float(row[-1].split("x")[0].strip("*")) for row in rows])


def report(bits: BitSpec, tokens: int, rounds: int, only: str | None) -> list[str]:
    """All tables of this machine's kernels, or of one of them."""
    lines = [
        f"{cpu_name()}, one thread, torch {package_version('torch')}, {tokens} tokens, {bits}, "
        f"median ± interquartile range of {rounds} rounds in turns; ratios with 95 % bootstrap "
        "intervals.",
    ]
    ready = [one.name for one in kernel_states() if "cpu" in one.devices]
    for name in ready if only is None else [only]:
        kernel = load_kernel(name)
        first = list(linears(kernel, bits, tokens, rounds))
        second = list(blocks(kernel, bits, tokens, rounds))
        third = list(grids(kernel, tokens, rounds))
        times = ["full precision, ms", f"{name}, ms", "faster"]
        lines += ["", f"Linears, rounding of the input included; geometric mean of the ratios "
                      f"{mean_ratio(first):.2f}x:", ""]  # fmt: skip
        lines += table(["model", "in x out", "full precision is", "bytes a weight", *times], first)
        lines += ["", f"Blocks, {TEXT} text tokens more, attention as the model has it:", ""]
        lines += table(["model", "inputs", "full precision is", *times], second)
        lines += ["", "Other grids, 3072 x 3072:", ""]
        lines += table(["grid", "full precision is", "bytes a weight", *times], third)
    if not ready:
        states = "; ".join(f"{one.name}: {one.missing}" for one in kernel_states())
        lines.append(f"No kernel runs on this processor ({states}).")
    return lines


def main() -> int:
    """Print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bits", type=BitSpec.parse, default=BitSpec.parse("w4a6"))
    parser.add_argument("--kernel", help="time this one alone")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        lines = report(chosen.bits, chosen.tokens, chosen.rounds, chosen.kernel)
    print("\n".join(lines))
    if chosen.write:
        page = PAGE.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        after = rest.split(END)[1]
        text = "\n".join([BEGIN, *lines, END])
        PAGE.write_text(before + text + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
