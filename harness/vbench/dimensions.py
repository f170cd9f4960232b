"""The 16 dimensions of VBench (Huang et al., CVPR 2024): what each needs and how it is scaled.

Ranges and weights of the totals are those of ``scripts/constant.py`` in the official repository.
"""

from __future__ import annotations

from dataclasses import dataclass

VBENCH_VERSION = "0.1.5"

QUALITY, SEMANTIC = "quality", "semantic"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimension:
    """One dimension of the official package.

    Attributes:
        name: As in ``VBench_full_info.json`` and in our records.
        kind: The score it is part of, ``quality`` or ``semantic``.
        low: Lower end of the official normalisation.
        high: Upper end of the official normalisation.
        weight: Official weight in the quality or semantic score.
        weights: Ids of the weight files it needs (``harness/vbench/weights.toml``).
        custom: Whether the official code allows prompts that are not VBench's.
        asks: What of the prompt the value depends on: nothing, its ``text``, the ``label`` in the
            official file name, or the ``auxiliary`` entry of the prompt list.
        detector: Whether it needs detectron2, which no package index has.
        frames: Frames a clip must have at least.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0
    weights: tuple[str, ...] = ()
    custom: bool = True
    asks: tuple[str, ...] = ()
    detector: bool = False
    frames: int = 1


_AUXILIARY = ("auxiliary",)

DIMENSIONS = {
    d.name: d
    for d in (
        Dimension(
            name="subject_consistency",
            kind=QUALITY,
            low=0.1462,
            weights=("dino-code", "dino-vitb16"),
            frames=2,
        ),
        Dimension(
            name="background_consistency",
            kind=QUALITY,
            low=0.2615,
            weights=("clip-vit-b-32",),
            frames=2,
        ),
        Dimension(name="temporal_flickering", kind=QUALITY, low=0.6293, frames=2),
        # AMT interpolates each odd frame from its two neighbours.
        Dimension(
            name="motion_smoothness",
            kind=QUALITY,
            low=0.706,
            high=0.9975,
            weights=("amt-s",),
            frames=3,
        ),
        Dimension(name="dynamic_degree", kind=QUALITY, weight=0.5, weights=("raft-things",)),
        Dimension(
            name="aesthetic_quality",
            kind=QUALITY,
            weights=("clip-vit-l-14", "laion-aesthetic-head"),
        ),
        Dimension(name="imaging_quality", kind=QUALITY, weights=("musiq-spaq",)),
        Dimension(
            name="object_class",
            kind=SEMANTIC,
            weights=("grit", "bert-base-uncased"),
            custom=False,
            asks=_AUXILIARY,
            detector=True,
        ),
        Dimension(
            name="multiple_objects",
            kind=SEMANTIC,
            weights=("grit", "bert-base-uncased"),
            custom=False,
            asks=_AUXILIARY,
            detector=True,
        ),
        Dimension(name="human_action", kind=SEMANTIC, weights=("umt-l16",), asks=("label",)),
        Dimension(
            name="color",
            kind=SEMANTIC,
            weights=("grit", "bert-base-uncased"),
            custom=False,
            asks=("text", "auxiliary"),
            detector=True,
        ),
        Dimension(
            name="spatial_relationship",
            kind=SEMANTIC,
            weights=("grit", "bert-base-uncased"),
            custom=False,
            asks=_AUXILIARY,
            detector=True,
        ),
        Dimension(
            name="scene",
            kind=SEMANTIC,
            high=0.8222,
            weights=("tag2text-swin", "bert-base-uncased"),
            custom=False,
            asks=_AUXILIARY,
        ),
        Dimension(
            name="appearance_style",
            kind=SEMANTIC,
            low=0.0009,
            high=0.2855,
            weights=("clip-vit-b-32",),
            custom=False,
            asks=_AUXILIARY,
        ),
        Dimension(
            name="temporal_style",
            kind=SEMANTIC,
            high=0.364,
            weights=("viclip-l-14", "clip-bpe"),
            asks=("text",),
        ),
        Dimension(
            name="overall_consistency",
            kind=SEMANTIC,
            high=0.364,
            weights=("viclip-l-14", "clip-bpe"),
            asks=("text",),
        ),
    )
}

EIGHT = (
    "imaging_quality",
    "aesthetic_quality",
    "motion_smoothness",
    "dynamic_degree",
    "background_consistency",
    "subject_consistency",
    "scene",
    "overall_consistency",
)
"""The dimensions that quantization papers print, in their column order (ViDiT-Q, ICLR 2025, whose
evaluation S2Q-VDiT and Q-VDiT follow)."""

CLOSENESS = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "temporal_flickering",
    "dynamic_degree",
)
"""Dimensions that a broken model can lead: a frozen clip is among the highest of the first four,
noise of the last. They are read as closeness to the unquantized row, and none is the best."""

STATIC = "static_filter"
"""Not a dimension: the official static filter; flickering is averaged over the clips it passes."""

FLOW = "flow_score"
"""Not a dimension: mean optical flow of RAFT, as video papers print it beside VBench."""

EXTRA_WEIGHTS = {STATIC: ("raft-things",), FLOW: ("raft-things",)}
