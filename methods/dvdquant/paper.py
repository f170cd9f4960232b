"""Where DVD-Quant comes from, and every place where this is not its text."""

from __future__ import annotations

from harness.api import Deviation, Reproduction

_DEVIATIONS = (
    Deviation(
        kind="reconstructed",
        what="everything: the method is built from its formulas as reviews and notes quote them, "
        "and from the figures of its repository",
        why="no code is released, and the full text was not at hand",
    ),
    Deviation(
        kind="reconstructed",
        what="BGR's bounds are factors 1, 0.99, ... 0.2 on minimum and maximum of a row: both "
        "together, then the lower alone, then the upper alone; at most 50 refinement steps, a row "
        "stops at a relative gain below 1e-4; one grid an output channel, its range holds 0",
        why="no source gives step sizes, number of points, tolerance or weight granularity",
    ),
    Deviation(
        kind="reconstructed",
        what="the refined zero point is the mean over the row, rounded to an integer",
        why="the formula is quoted without a reduction; the mean is its least-squares solution for "
        "one zero point a row",
    ),
    Deviation(
        kind="reconstructed",
        what="ARQ rounds each token in groups of 64 channels by their absolute maximum, symmetric; "
        "'literal' is the printed per-channel scale, simulation only",
        why="a scale inside the sum of the GEMM cannot run on integers; the paper's numbers use a "
        "block-wise form whose block is not given",
    ),
    Deviation(
        kind="deviation",
        what="the rotation has random signs, the same for all inputs of one width, saved with the "
        "artifact; widths without a Hadamard matrix are rotated block-diagonally",
        why="the quoted formula has a plain Hadamard matrix and says nothing of widths that have "
        "none; signs keep a constant channel from gathering in one place",
    ),
    Deviation(
        kind="reconstructed",
        what="modulation linears: BGR without rotation, 16-bit activations",
        why="which layers the paper leaves out is in no source; the storage convention is that of "
        "the other methods here",
    ),
    Deviation(
        kind="reconstructed",
        what="w4a6: delta by bisection on one trajectory of the empty prompt, then corrected on "
        "trajectories of the quantized model until the mean width is within half a step of 6; the "
        "output compared is the conditional branch; the first two steps have no history and take "
        "8 bits",
        why="the paper sweeps delta and names none for its W4A6 row; a data-free method has no "
        "prompts to tune on",
    ),
    Deviation(
        kind="adaptation",
        what="w4a4 and w4a8 are plain layers, delta = infinity and delta = 0, so w4a4 has 4 bits "
        "at the first two steps too; every other width is uniform, without switching",
        why="the label of a row is held for every step where the method does not ask for a mixture",
    ),
)

REPRODUCTION = Reproduction(
    title="DVD-Quant: Data-free Video Diffusion Transformers Quantization",
    source="arXiv 2505.18663 (ICLR 2026)",
    code="none released as of 2026-09 (the repository holds a README)",
    rows=(
        "HunyuanVideo W4A6, table 1: aesthetic 62.27, imaging 64.22, scene 33.07 (fp 62.53, "
        "64.78, 42.81)",
        "HunyuanVideo W4A4, table 1: aesthetic 61.96, imaging 61.82, scene 29.94",
    ),
    deviations=_DEVIATIONS,
)
