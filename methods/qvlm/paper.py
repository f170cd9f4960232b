"""Where Q-VLM comes from, and every place where this is not its text."""

from __future__ import annotations

from harness.api import SAME_BUDGET, Deviation, Reproduction

_DEVIATIONS = (
    Deviation(
        kind="adaptation",
        what="layers are the sub-layer inputs of a denoiser block (attention input and output, "
        "cross-attention query, feed-forward input); the second feed-forward linear follows the "
        "first, text keys and values follow their query, the linears of a text stream those of "
        "the video stream",
        why="the paper treats language models; the dependency pairs elements of neighbours, which "
        "must have one shape",
    ),
    Deviation(
        kind="deviation",
        what="no visual-encoder optimisation (VEO, eq. 8-10)",
        why="text-to-video has no visual encoder",
    ),
    Deviation(
        kind="deviation",
        what="activations are dynamic and asymmetric per token for text and video alike, with one "
        "searched factor a node; static per-tensor percentiles (the paper's 1.0 ... 0.98) as "
        "option; the paper has per-channel activations in the language model and per-token ones "
        "in the vision encoder",
        why="per-channel steps lie inside the sum of a matrix product and have no integer kernel",
    ),
    Deviation(
        kind="reconstructed",
        what="dynamic factors 1, .95, .9, .85, .8; the search of weight factors is an option",
        why="the paper's grid is one of percentiles of a static range; whether its search covers "
        "weights is not said",
    ),
    Deviation(
        kind="reconstructed",
        what="weights are uniform, asymmetric, per output channel, their range found by the least "
        "squared error; the released code has NF4 in blocks of 64 from bitsandbytes and searches "
        "nothing there",
        why="the paper has uniform quantizers and begins with ranges of least l_p distance",
    ),
    Deviation(
        kind="reconstructed",
        what="dependency from hard 4-bit codes: one joint 16 x 16 histogram a sample over up to "
        "4096 tokens x 256 channels, per element, mean over samples; the paper has soft "
        "codes and a sum over elements",
        why="a mean makes the threshold comparable between models; the soft form matters only "
        "where it is differentiated",
    ),
    Deviation(
        kind="reconstructed",
        what="h_0 is the mean of all dependencies ('median' as option), blocks grow from left to "
        "right, the dependency of a block is summed over the pairs inside it",
        why="h_0 is not published, and as printed the sum has one pair more than its threshold "
        "has steps",
    ),
    Deviation(
        kind="adaptation",
        what="a block ends where neighbours have different shapes (streams that merge) or their "
        "tokens are rearranged (spatial and temporal attention)",
        why="the dependency is undefined there",
    ),
    Deviation(
        kind="reconstructed",
        what="the block output of eq. 3 is the input of the next node, or the output of the "
        "transformer block where that ends; the target comes from the full-precision prefix; "
        "exhaustive up to 125 combinations, two sweeps of coordinate descent above",
        why="the paper does not say how the search is run",
    ),
    Deviation(
        kind="deviation",
        what="the objective sees at most 4096 evenly spaced tokens of a tensor, static percentiles "
        "about 8000 evenly spaced values of a sample; while a block of nodes reaches into the next "
        "transformer block, that one's modulation linears are still in full precision",
        why="memory and time on video; the next transformer block is quantized when its turn comes",
    ),
    Deviation(
        kind="deviation",
        what="the joint search is done as in the paper; the released code has none: ranges of "
        "chosen layers are shrunk one by one for the error of their own output, the entropy is "
        "taken of normalised magnitudes, and every third layer is always searched",
        why="the release is another algorithm than the paper",
    ),
    SAME_BUDGET,
    Deviation(
        kind="adaptation",
        what="the search sees 8 of the samples; the paper has 64 image-text pairs",
        why="the same calibration budget for every method",
    ),
)

REPRODUCTION = Reproduction(
    title="Q-VLM: Post-training Quantization for Large Vision-Language Models",
    source="arXiv 2410.08119 (NeurIPS 2024)",
    code="https://github.com/ChangyuanWang17/QVLM (no joint search in it)",
    rows=(
        "LLaVA-7B ScienceQA W4A4: 79.79 (fp 89.81); 78.66 without VEO, 77.53 without both",
        "LLaVA-7B ScienceQA W6A6: 89.34",
        "no row on a diffusion model is published",
    ),
    deviations=_DEVIATIONS,
)
