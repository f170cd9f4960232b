"""Where Q-VDiT comes from, and every place where this is not its text."""

from __future__ import annotations

from harness.api import SAME_BUDGET, SAME_TARGETS, Deviation, Reproduction

_DEVIATIONS = (
    Deviation(
        kind="adaptation",
        what="frames are the latent frames of a 3D VAE, contiguous in the token sequence; text "
        "tokens in a joint sequence have gain 1, linears that read text alone or one frame at a "
        "time have an estimator without M, modulation linears none; M holds for the number of "
        "frames it was fitted on",
        why="the paper treats STDiT, whose text is apart and whose attention is split in space and "
        "time",
    ),
    SAME_BUDGET,
    Deviation(
        kind="deviation",
        what="the paper takes 10 prompts x 50 timesteps, its code both guidance branches of each",
        why="the same calibration budget for every method",
    ),
    Deviation(
        kind="reconstructed",
        what="the estimator stands in every linear, and M once where a linear sees frames, "
        "starting at eta / omega (mean over samples), as the paper writes; in the released code M "
        "exists in temporal attention only, starts at one, and the branch enters twice",
        why="paper and code differ; the paper is followed",
    ),
    Deviation(
        kind="reconstructed",
        what="there is no branch inside the rounding; the released code adds a rank-32 one to "
        "every weight before it is rounded (`inner_rank` = 32)",
        why="paper and code differ; the paper is followed",
    ),
    Deviation(
        kind="reconstructed",
        what="activations are rounded in training; in the released code they are rounded only "
        "afterwards (`train_activations` = false)",
        why="paper and code differ; the paper is followed",
    ),
    Deviation(
        kind="reconstructed",
        what="the output is permuted to [batch, frames, channels x height x width] before TMD "
        "compares frames; the released code reshapes [b, c, t, h, w] without permuting, so that "
        "its 'frames' are slices of the channels",
        why="the paper's text; the code has a defect",
    ),
    Deviation(
        kind="reconstructed",
        what="||S - S^||^2 is a mean over the output, L_temporal a sum over frames, similarities "
        "are cosines at temperature 1",
        why="the paper prints norms and sums, its code takes means throughout; with one weight of "
        "100 either reading is possible",
    ),
    Deviation(
        kind="reconstructed",
        what="uniform widths; in the released 3- and 4-bit configurations the feed-forward linears "
        "are W8A8 (`ff_bits` = 8, then reported as mixed; a linear that is attention output and "
        "second feed-forward linear in one counts as the latter)",
        why="the paper names the width without exception",
    ),
    Deviation(
        kind="deviation",
        what="no SmoothQuant scale; the released W4A8 and W6A6 configurations have one (alpha 0.11 "
        "and 0.5), its W4A6 and W8A8 have none",
        why="the paper does not mention it",
    ),
    Deviation(
        kind="reconstructed",
        what="the range search tries 50 shares of the full range from 0.02 to 1; the released "
        "code's go from 0 to 0.98. Zero points stay as found; the steps alone are learned",
        why="the full range must be among the candidates",
    ),
    SAME_TARGETS,
)

REPRODUCTION = Reproduction(
    title="Q-VDiT: Towards Accurate Quantization and Distillation of Video-Generation "
    "Diffusion Transformers",
    source="arXiv 2505.22167 (ICML 2025)",
    code="https://github.com/cantbebetter2/Q-VDiT (STDiT of Open-Sora; differs from the paper, "
    "see the deviations)",
    rows=(
        (
            "Open-Sora W4A6, VBench: imaging 57.49, aesthetic 55.18, scene 38.66 "
            "(fp 63.68, 57.12, 39.61)"
        ),
        "Open-Sora W3A6, VBench: imaging 53.60, aesthetic 49.66, scene 23.40",
    ),
    deviations=_DEVIATIONS,
)
