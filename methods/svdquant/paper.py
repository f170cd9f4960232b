"""Where SVDQuant comes from, and every place where this is not its text."""

from __future__ import annotations

from harness.api import SAME_BUDGET, SAME_TARGETS, Deviation, Reproduction

_DEVIATIONS = (
    SAME_TARGETS,
    SAME_BUDGET,
    Deviation(
        kind="adaptation",
        what="blocks and inputs are those of a video DiT; the released configuration is calibrated "
        "on 128 image captions at all timesteps",
        why="the paper treats image models",
    ),
    Deviation(
        kind="adaptation",
        what="the output error of the searches is measured on 2048 tokens of each input, drawn "
        "evenly over the samples",
        why="the inputs of a video do not fit in memory",
    ),
    Deviation(
        kind="adaptation",
        what="the smoothing stays a division in front of the layer; no family's producers take it",
        why="the function is the same, and every input has it, also behind a nonlinearity",
    ),
    Deviation(
        kind="adaptation",
        what="the rank is at most a quarter of a weight's smaller side, and the report says where; "
        "32 stands from a width of 128 on",
        why="a branch of rank 32 would hold all of a miniature's weight",
    ),
    Deviation(
        kind="reconstructed",
        what="all linears that read one tensor share smoothing and down-projection, whatever "
        "their number (q, k, v and the feed-forward of a single-stream block)",
        why="the configuration stacks q, k and v; other layers of one input are not named",
    ),
    Deviation(
        kind="reconstructed",
        what="the refits of the branch round to nearest, GPTQ rounds the residual of the best one; "
        "damping 0.01, group grids from the updated weights, Hessians of the smoothed unrounded "
        "inputs",
        why="the paper names GPTQ and the iteration, not how they meet",
    ),
    Deviation(
        kind="deviation",
        what="beyond a side of 512, singular directions by subspace iteration with 32 directions "
        "more than the rank, started from those of the exponents tried before",
        why="the release decomposes in full, which takes minutes an input at real widths on a CPU; "
        "chosen smoothing and error agree",
    ),
    Deviation(
        kind="deviation",
        what="activations are signed in every layer; the release shifts the input of the second "
        "feed-forward linear by 0.171875 and rounds it unsigned",
        why="the shift holds for one GELU and one range of it; families here have others",
    ),
    Deviation(
        kind="deviation",
        what="modulation linears: weights in groups of 64, no branch, symmetric and to nearest",
        why="the release keeps their activations at 16 bits too, in another weight format",
    ),
    Deviation(
        kind="deviation",
        what="one recipe at every width: groups of 64 and the branch also at w8a8, integer grids "
        "only; cross-attention keys and values are quantized",
        why="rows of one method differ in nothing but the label; which further layers the release "
        "keeps differs from model to model",
    ),
)

REPRODUCTION = Reproduction(
    title="SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models",
    source="arXiv 2411.05007 (ICLR 2025)",
    code="https://github.com/mit-han-lab/deepcompressor",
    rows=(
        "PixArt-Sigma INT W4A4, MJHQ, table 1: FID 20.1, ImageReward 0.898, LPIPS 0.394, PSNR "
        "16.2 (fp16 16.6, 0.944); an image model: no video rows by the authors",
    ),
    deviations=_DEVIATIONS,
)
