"""Where ViDiT-Q comes from, and every place where this is not its text."""

from __future__ import annotations

from harness.api import SAME_BUDGET, SAME_TARGETS, Deviation, Reproduction

_DEVIATIONS = (
    Deviation(
        kind="deviation",
        what="every weight is rounded once, after scale and rotation; the release of 2025 rounds "
        "it after the scale and again after the rotation",
        why="a defect of the release: rounding twice adds the error of a grid that is never used",
    ),
    Deviation(
        kind="deviation",
        what="the signs of the Hadamard rotation are drawn from the calibration seed and saved "
        "with the artifact; the release of 2025 draws new ones when it loads",
        why="a defect of the release: weights and activations must be rotated alike",
    ),
    Deviation(
        kind="deviation",
        what="a step that is too small is raised by itself; the release of 2024 then overwrites "
        "every step of the tensor with 1e-6 (fill_)",
        why="a defect of the release",
    ),
    Deviation(
        kind="deviation",
        what="each batch element has its own token ranges; the release of 2024 shares them over "
        "the batch and therefore runs the guidance branches apart (cfg_split)",
        why="the branches are then independent, as in a deployed model",
    ),
    Deviation(
        kind="reconstructed",
        what="alpha = 0.11 for every width and linear, written as SmoothQuant's exponent of the "
        "activation; 0.11-0.12 in the release of 2024 (W4A8), 0.88 as 1 - alpha in that of 2025 "
        "(its DiT example)",
        why="the convention flips between the releases and no other value was published",
    ),
    Deviation(
        kind="reconstructed",
        what="balancing at every width, of every linear that sees tokens, 'attention' as option; "
        "the releases choose layers by regular expressions that differ from example to example, "
        "and that of 2024 ran W8A8 without balancing",
        why="one rule for all families; the feed-forward has the worst outliers",
    ),
    Deviation(
        kind="deviation",
        what="one scale for the whole trajectory; the first version of the paper had one for each "
        "half of the timesteps, with the same alpha and an EMA statistic",
        why="the published version takes the maximum over timesteps",
    ),
    SAME_BUDGET,
    Deviation(
        kind="adaptation",
        what="4 prompts ('both' guidance branches are an option); the releases take 8 or 10",
        why="the same calibration budget for every method",
    ),
    SAME_TARGETS,
    Deviation(
        kind="adaptation",
        what="modulation linears have weights of the nominal width; the release keeps them in high "
        "precision",
        why="the same target set for every method",
    ),
    Deviation(
        kind="deviation",
        what="mixed precision (option) ranks layers by proxies on the denoiser's output at "
        "calibration samples: change of the guidance direction for CLIPScore, relative squared "
        "error for DOVER, error of the frame differences for the flow score",
        why="the metrics need their own weights and decoded clips; a metric of one's own can be "
        "given by module:function",
    ),
    Deviation(
        kind="reconstructed",
        what="mixed precision: group budgets are proportional to the summed relative squared "
        "output error of the group's layers; the total is 6.2 bits, the average of the released "
        "Open-Sora plan (feed-forward at 8, the first quarter at 8, attention at 4); a layer's "
        "sensitivity is that of weights and activations at the nominal widths, on one sample a "
        "quarter",
        why="the rule and the budget are not in the texts and code at hand",
    ),
    Deviation(
        kind="adaptation",
        what="mixed precision: joint attention over text and video is ranked as attention to the "
        "text; a layer is one attention or feed-forward of a block",
        why="the paper treats models with separate cross-attention",
    ),
    Deviation(
        kind="deviation",
        what="mixed precision changes weights only, activations keep the nominal width in every "
        "step",
        why="W4A8-MP has 8-bit activations everywhere",
    ),
)

REPRODUCTION = Reproduction(
    title="ViDiT-Q: Efficient and Accurate Quantization of Diffusion Transformers for Image "
    "and Video Generation",
    source="arXiv 2406.02540 (ICLR 2025)",
    code="released by the authors in 2024 and 2025, two different code bases",
    rows=(
        "Open-Sora W4A6 as re-run by Q-VDiT, VBench: imaging 55.63, aesthetic 53.68 "
        "(fp 63.68, 57.12)",
        "Open-Sora W8A8 as reprinted by Q-VDiT, table 3: CLIPSIM .1950, VQA-A 60.70",
        "Open-Sora W4A8 as reprinted by Q-VDiT, table 3: CLIPSIM .1809, VQA-A 60.62",
    ),
    deviations=_DEVIATIONS,
)
