"""Score: judge clips by scorers whose results are kept by the content that they judged.

Importing this module needs no torch: planning asks it which scores exist.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, InfraError
from harness.generate.generate import LATENTS_FILE, LOSSLESS_FILE, MP4_FILE
from harness.score.clip_weights import clip_identity, clip_missing
from harness.score.fvd_weights import fvd_identity, fvd_missing
from harness.score.names import CLIP, FVD
from harness.store.keys import Keyed, digest, file_digest, score_inputs
from harness.store.provenance import package_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.spec import Prompt
    from harness.store.store import Entry, Store

SCORE_FILE = "score.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """A group of metrics that are computed together.

    Attributes:
        modules: Where it is implemented; their sources are part of every score's key.
        packages: Libraries it computes with; their versions are part of every score's key.
        paired: Whether it compares with the unquantized clip of the same prompt and seed.
        metrics: Names of its values.
        asks: What an unpaired scorer reads of a prompt: its ``tags``, its ``text`` or nothing.
        coded: Whether it reads the coded file, as published numbers do, not the exact frames.
        weights: Digest of the weights it computes with; part of every score's key.
    """

    name: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    paired: bool
    metrics: tuple[str, ...]
    asks: str = "tags"
    coded: bool = False
    weights: Callable[[], str] | None = None


ASPECTS = ("colour", "shape", "background", "motion")
CONJUNCTION = "all"
CLIP_METRICS = ("clipsim", "clip_temp", "clipsim_evalcrafter", "clip_temp_evalcrafter")
FVD_METRIC = "fvd_r3d18_to_fp"
FEATURES = "features"

SCORERS = {
    scorer.name: scorer
    for scorer in (
        Scorer(
            name="fidelity",
            modules=("harness.score.fidelity",),
            packages=("torch", "torchmetrics"),
            paired=True,
            metrics=("psnr_db", "ssim", "latent_cosine", "latent_error"),
        ),
        Scorer(
            name="lpips",
            modules=("harness.score.fidelity",),
            packages=("torch", "torchmetrics", "torchvision"),
            paired=True,
            metrics=("lpips",),
        ),
        Scorer(
            name="oracle",
            modules=("harness.models.shapes.oracle", "harness.models.shapes.world"),
            packages=("numpy", "scipy"),
            paired=False,
            metrics=tuple(
                f"{kind}_{what}"
                for kind in ("oracle", "margin")
                for what in (*ASPECTS, CONJUNCTION)
            ),
        ),
        Scorer(
            name=CLIP,
            modules=("harness.score.clip",),
            packages=("torch", "transformers", "tokenizers", "pillow", "numpy"),
            paired=False,
            metrics=CLIP_METRICS,
            asks="text",
            coded=True,
            weights=clip_identity,
        ),
        # Its value belongs to the whole row; of a clip there are the features alone.
        Scorer(
            name=FVD,
            modules=("harness.score.fvd",),
            packages=("torch", "torchvision", "numpy"),
            paired=False,
            metrics=(),
            asks="",
            coded=True,
            weights=fvd_identity,
        ),
    )
}
EXTRAS = {CLIP: CLIP_METRICS, FVD: (FVD_METRIC,)}
"""What is scored where it is asked for: the metrics of each name."""


def scorers_for(
    judge: str, prompts: Sequence[Prompt], asked: Sequence[str] = (), *, clips: int = 0
) -> tuple[str, ...]:
    """The scorers of a model on a suite.

    Args:
        judge: ``ModelSpec.judge``.
        prompts: The suite; the oracle can only judge prompts that say in tags what they ask for.
        asked: Metrics that were asked for by name.
        clips: Clips of a row.
    """
    tagged = all(set(ASPECTS) <= dict(prompt.tags).keys() for prompt in prompts)
    names = ["fidelity", *([] if lpips_missing() else ["lpips"])]
    extras = [name for name in EXTRAS if name in asked and not extra_missing(name, clips)]
    return (*names, *([judge] if judge and tagged else []), *extras)


def extra_missing(name: str, clips: int) -> str:
    """Why a scorer that was asked for cannot score rows of so many clips, empty where it can."""
    if name == CLIP:
        return clip_missing()
    from harness.score.fvd import too_few

    return too_few(clips) or fvd_missing()


@cache
def lpips_missing() -> str:
    """Why LPIPS is not computed, empty where it is; finds out without importing torch."""
    if not package_version("torchvision"):
        return "torchvision is not installed (pip install 'vdit-quant-harness[lpips]')"
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    torch_home = Path(os.environ.get("TORCH_HOME") or Path(cache_home) / "torch")
    checkpoints = torch_home / "hub" / "checkpoints"
    if not any(checkpoints.glob("alexnet-*.pth")):
        return f"AlexNet weights are not in {checkpoints}"
    return ""


def score_key(scorer: Scorer, prompt: Prompt, clip: Entry, reference: Entry | None) -> Keyed:
    """Key of one score, from the content of the clips rather than from how they were made."""
    paired = scorer.paired and reference is not None
    environment = {name: package_version(name) for name in scorer.packages}
    if scorer.weights is not None:
        environment["weights"] = scorer.weights()
    told = {"tags": dict(prompt.tags), "text": {"text": prompt.text}}
    inputs = score_inputs(
        clip=clip.file_sha256(MP4_FILE) if scorer.coded else _content(clip),
        reference=_content(reference) if paired and reference is not None else "",
        scorer=scorer.name,
        version=digest([_source(module) for module in scorer.modules]),
        asked={} if scorer.paired else told.get(scorer.asks, {}),
        environment=environment,
    )
    return Keyed(key=digest(inputs), inputs=inputs)


def score_clip(
    store: Store, scorer: Scorer, prompt: Prompt, clip: Entry, reference: Entry | None
) -> None:
    """Compute and publish one score, unless the store has it.

    A value that cannot be computed (a clip that diverged) is published as failed with its reason:
    it is a property of the clip, not of this run.
    """
    wanted = score_key(scorer, prompt, clip, reference)
    if store.find("score", wanted.key) is not None:
        return
    values: dict[str, Any] = {}
    failed = ""
    try:
        values = dict(_COMPUTE[scorer.name](prompt, clip, reference))
    except InfraError:
        raise  # weights that are gone say nothing of the clip
    except HarnessError as cause:
        failed = cause.message
    text = json.dumps({"values": values, "failed": failed}, sort_keys=True, allow_nan=False)
    with store.build("score", wanted.key, wanted.inputs, {"label": scorer.name}) as folder:
        (folder / SCORE_FILE).write_text(text + "\n", encoding="utf-8")


def find_score(
    store: Store, scorer: Scorer, prompt: Prompt, clip: Entry, reference: Entry | None
) -> Mapping[str, Any] | None:
    """A published score: ``values``, ``failed``, ``key``, ``at``; None if it is not there."""
    wanted = score_key(scorer, prompt, clip, reference)
    entry = store.find("score", wanted.key)
    if entry is None:
        return None
    return {**entry.json(SCORE_FILE), "key": wanted.key, "at": entry.manifest["at"]}


@cache
def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise HarnessError(f"scorer module '{module}' is missing", "install the package again")
    return file_digest(Path(spec.origin))[:16]


def _content(clip: Entry) -> str:
    return digest([clip.file_sha256(LOSSLESS_FILE), clip.file_sha256(LATENTS_FILE)])


def _pair(clip: Entry, reference: Entry | None) -> tuple[Entry, Entry]:
    if reference is None:
        raise ValueError("a paired scorer was called without a reference")
    return clip, reference


def _fidelity(prompt: Prompt, clip: Entry, reference: Entry | None) -> dict[str, float]:
    from safetensors.torch import load_file

    from harness.generate.video import read
    from harness.score.fidelity import fidelity

    del prompt
    pair = _pair(clip, reference)
    frames = [read(entry.folder / LOSSLESS_FILE) for entry in pair]
    latents = [load_file(entry.folder / LATENTS_FILE)["latents"] for entry in pair]
    return fidelity(frames[0], frames[1], latents[0], latents[1])


def _lpips(prompt: Prompt, clip: Entry, reference: Entry | None) -> dict[str, float]:
    from harness.generate.video import read
    from harness.score.fidelity import lpips

    del prompt
    return {"lpips": lpips(*(read(e.folder / LOSSLESS_FILE) for e in _pair(clip, reference)))}


def _oracle(prompt: Prompt, clip: Entry, reference: Entry | None) -> dict[str, float]:
    from harness.generate.video import read
    from harness.models.shapes.oracle import judge
    from harness.models.shapes.world import Attributes

    del reference
    tags = dict(prompt.tags)
    asked = Attributes(**{aspect: tags[aspect] for aspect in ASPECTS})
    verdict = judge(read(clip.folder / LOSSLESS_FILE), asked)
    names = {aspect: aspect for aspect in ASPECTS} | {"conjunction": CONJUNCTION}
    found = {f"oracle_{names[k]}": float(right) for k, right in verdict.right().items()}
    return found | {f"margin_{names[k]}": margin for k, margin in verdict.margins().items()}


def _clip(prompt: Prompt, clip: Entry, reference: Entry | None) -> dict[str, float]:
    from harness.generate.video import read
    from harness.score.clip import clip_scores

    del reference
    return clip_scores(read(clip.folder / MP4_FILE), prompt.text)


def _fvd(prompt: Prompt, clip: Entry, reference: Entry | None) -> dict[str, list[float]]:
    from harness.generate.video import read
    from harness.score.fvd import features

    del prompt, reference
    return {FEATURES: features(read(clip.folder / MP4_FILE))}


_COMPUTE: dict[str, Callable[[Prompt, Entry, Entry | None], Mapping[str, Any]]] = {
    "fidelity": _fidelity,
    "lpips": _lpips,
    "oracle": _oracle,
    CLIP: _clip,
    FVD: _fvd,
}
