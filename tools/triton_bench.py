"""Time the Triton kernels beside cuBLAS at the linears of published models, on a CUDA device.

    python tools/triton_bench.py [--model cogvideox-5b] [--tokens 35552,4096] [--ms 100]

Exactness is checked first, and nothing is timed where it fails (exit 1). Then a Markdown table:
milliseconds of rounding the tokens and multiplying, median and interquartile range, and the ratio
of the medians of cuBLAS in bfloat16 and of the kernels; inputs and outputs are bfloat16 and the L2
cache is cleared before each run. Needs torch, triton and this package. Without a GPU it says so
and exits with 2.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness.kernels.triton.weight import Weight

LINEARS = {
    "cogvideox-2b": ((1920, 1920), (1920, 7680), (7680, 1920)),
    "cogvideox-5b": ((3072, 3072), (3072, 12288), (12288, 3072)),
    "hunyuanvideo": ((3072, 3072), (3072, 12288), (12288, 3072), (15360, 3072)),
    "wan2.1-14b": ((5120, 5120), (5120, 13824), (13824, 5120)),
}
"""In and out features of attention projections and feed-forwards, from the models' configs."""

TOKENS = (2 * 17776, 4096)
"""Both guidance branches of a CogVideoX clip of 49 frames at 480 x 720: 226 tokens of text and 13 x
30 x 45 of video each; and few."""

WIDTHS = ((8, 8), (4, 8), (4, 6))
GROUPS = (0, 128)


def random_weight(width: int, rows: int, bits: int, group: int) -> Weight:
    """Random symmetric codes with steps that keep outputs near 1."""
    from harness.kernels.triton.weight import prepare_weight
    from harness.quant.layers.pack import pack

    half = 1 << (bits - 1)
    codes = torch.randint(-half, half, (rows, width), dtype=torch.int8, device="cuda")
    groups = width // group if group else 1
    scale = torch.rand(rows, groups, device="cuda") / half / width**0.5
    return prepare_weight(pack(codes, bits), (rows, width), scale, None, bits=bits, group=group)


def lanes_of(weight: Weight, width: int) -> Tensor:
    """The lanes of a weight, unpacked."""
    from harness.quant.layers.pack import unpack

    if weight.data.dtype == torch.int8:
        return weight.data
    return unpack(weight.data.view(-1), 4, (len(weight.data), width), signed=True)


def check(width: int) -> list[str]:
    """What is not exact at an input width."""
    from harness.kernels.triton.linear import int8_linear, int8_matmul
    from harness.kernels.triton.rotate import rotate_quantize
    from harness.kernels.triton.tokens import quantize_tokens
    from harness.quant.layers.activation import ActivationSpec, activation_codes
    from harness.quant.layers.transform import Hadamard

    found = []
    x = torch.randn(261, width, device="cuda").bfloat16()
    for bits in (6, 8):
        wanted = activation_codes(x.cpu().float(), ActivationSpec(bits=bits))
        if not torch.equal(quantize_tokens(x, bits).codes.cpu().float(), wanted):
            found.append(f"codes of {bits} bits differ from those of the simulation")
    rotation = Hadamard.random(width, torch.Generator().manual_seed(0))
    codes = rotate_quantize(x, rotation.signs.cuda(), 8).tokens.codes.cpu().float()
    off = (codes - activation_codes(rotation(x.cpu()).float(), ActivationSpec(bits=8))).abs()
    share = float((off > 0).float().mean())
    if off.max() > 1 or share > 1e-3:
        found.append(f"rotated codes: {share:.2%} differ, by {int(off.max())} at most")
    tokens = quantize_tokens(x, 8)
    for bits in (4, 8):
        for group in GROUPS:
            weight = random_weight(width, 513, bits, group)
            lanes = lanes_of(weight, width).double()
            exact = tokens.codes.double() @ lanes.T
            sums = int8_matmul(tokens.codes, weight.data, bits=bits)
            if not torch.equal(sums.double(), exact):
                found.append(f"int32 sums of {bits}-bit weights are not exact")
            steps = weight.scale.double().repeat_interleave(width // weight.scale.shape[1], 1)
            wanted = tokens.scale.double() * tokens.codes.double() @ (lanes * steps).T
            y = int8_linear(
                tokens.codes, tokens.scale, None, weight.data, weight.scale, None,
                bits=bits, group=group, out_dtype=torch.float32,
            )  # fmt: skip
            error = float((y - wanted).abs().max() / wanted.abs().max())
            if not error < 1e-5:
                found.append(f"{bits}-bit weights in groups of {group}: off by {error:.1e}")
    return found


def timed(work: Callable[[], object], milliseconds: int) -> tuple[float, float, float]:
    """Quartiles of the milliseconds that a call takes."""
    from triton.testing import do_bench

    low, median, high = do_bench(
        work, warmup=milliseconds // 4, rep=milliseconds, quantiles=[0.25, 0.5, 0.75]
    )
    return low, median, high


def rows(width: int, out: int, tokens: int, milliseconds: int) -> list[str]:
    """The lines of the table for one linear."""
    from harness.kernels.triton.linear import int8_linear
    from harness.kernels.triton.rotate import rotate_quantize
    from harness.kernels.triton.tokens import quantize_tokens
    from harness.quant.layers.transform import Hadamard

    x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
    dense = torch.randn(out, width, device="cuda", dtype=torch.bfloat16)
    plain = timed(lambda: torch.nn.functional.linear(x, dense), milliseconds)
    signs = Hadamard.random(width, torch.Generator().manual_seed(0)).signs.cuda()
    found = []
    for rotated in (False, True):
        cells = [f"{width} x {out}", str(tokens), "yes" if rotated else "no", spelt(plain)]
        for w_bits, a_bits in WIDTHS:
            for group in GROUPS:
                weight = random_weight(width, out, w_bits, group)

                def work(weight: Weight = weight, a_bits: int = a_bits, on: bool = rotated) -> None:
                    made = (
                        rotate_quantize(x, signs, a_bits).tokens
                        if on
                        else quantize_tokens(x, a_bits)
                    )
                    int8_linear(
                        made.codes, made.scale, None, weight.data, weight.scale, None,
                        bits=weight.bits, group=weight.group,
                    )  # fmt: skip

                taken = timed(work, milliseconds)
                cells.append(f"{spelt(taken)} {plain[1] / taken[1]:.2f}x")
        found.append(f"| {' | '.join(cells)} |")
    return found


def spelt(quartiles: tuple[float, float, float]) -> str:
    """Median and interquartile range."""
    low, median, high = quartiles
    return f"{median:.3f} [{low:.3f}, {high:.3f}]"


def header() -> list[str]:
    """The first lines of the table."""
    kinds = [
        f"w{w}a{a} {f'group {group}' if group else 'channel'}"
        for w, a in WIDTHS
        for group in GROUPS
    ]
    cells = ["in x out", "tokens", "rotation", "cuBLAS bf16", *kinds]
    return [f"| {' | '.join(cells)} |", f"| :-- | --: | :-- |{' --: |' * (len(cells) - 3)}"]


def why_not() -> str | None:
    """Reason why nothing can be timed here."""
    if not torch.cuda.is_available():
        return "no CUDA device: the Triton kernels are timed on a GPU only"
    try:
        from harness.kernels.triton.launch import INTERPRETED
    except ImportError as error:
        return f"cannot be imported: {error}"
    return "TRITON_INTERPRET is set: kernels would be interpreted" if INTERPRETED else None


def main() -> int:
    """Check, time and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(LINEARS), help="one model only")
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)), help="numbers of tokens")
    parser.add_argument("--ms", type=int, default=100, help="milliseconds of each timing")
    arguments = parser.parse_args()
    if reason := why_not():
        print(reason)
        return 2
    import triton

    chosen = [arguments.model] if arguments.model else list(LINEARS)
    linears = sorted({shape for model in chosen for shape in LINEARS[model]})
    for width in sorted({width for width, _ in linears}):
        if wrong := check(width):
            print(f"not exact at width {width}: {'; '.join(wrong)}")
            return 1
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__};"
    )
    print("ms, median [quartiles], ratio of medians to cuBLAS; exactness checked\n")
    print("\n".join(header()), flush=True)
    for width, out in linears:
        for tokens in map(int, arguments.tokens.split(",")):
            print("\n".join(rows(width, out, tokens, arguments.ms)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
