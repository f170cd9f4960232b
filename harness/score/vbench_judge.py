"""Who judges by VBench, and the key of each value that it gives.

Importing this module needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.generate.generate import MP4_FILE
from harness.score.scorer import score_key
from harness.store.keys import canonical, digest
from harness.vbench.dimensions import DIMENSIONS, FLOW, STATIC
from harness.vbench.interpreter import worker_sources
from harness.vbench.suites import auxiliary
from harness.vbench.wants import action_label

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.spec import Prompt
    from harness.store.keys import Keyed
    from harness.store.provenance import Device
    from harness.store.store import Entry

PREFIX = "vbench:"
FLOAT32, OFFICIAL = "float32", "official"
_CLIP = "clip-vit"  # ids of openai-clip's weights
_DIGEST = 12  # hexadecimal digits printed; the manifest of the score has them all
# Sources of the worker that no value depends on: they read jobs, print events, watch the parent.
_SPEAKERS = ("__init__.py", "protocol.py", "lifeline.py")
_LIGHT = (
    *("subject_consistency", "background_consistency", "temporal_flickering"),
    *("motion_smoothness", "dynamic_degree", "imaging_quality", STATIC, FLOW),
)
_NOT_LIGHT = ("heavy.py", "action.py", "detector.py", "prompts.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class VBenchJudge:
    """What judges, all of it part of every score's key but for the folders.

    Attributes:
        python: Interpreter of the scoring environment.
        versions: Libraries of that environment.
        weights: Folder of the weights.
        digests: By dimension that can be judged: sha256 of its weights by id.
        scorer: ``shared`` or ``official``.
        precision: ``float32`` or ``bfloat16``.
        batch: Frames or pairs of frames that a model sees at once.
        threads: Threads the worker computes with.
        stand_in: Whether the weights are said not to be the official ones.
    """

    python: Path
    versions: Mapping[str, str]
    weights: Path
    digests: Mapping[str, Mapping[str, str]]
    device: Device
    scorer: str
    precision: str
    batch: int
    threads: int
    stand_in: bool = False

    def key(self, dimension: str, prompt: Prompt, clip: Entry) -> Keyed:
        """Key of one value, from the bytes of the clip and what the dimension asks of a prompt."""
        return score_key(
            clip=clip.file_sha256(MP4_FILE),
            reference="",
            scorer=PREFIX + dimension,
            version=_sources(dimension, self.scorer),
            asked=_asked(dimension, prompt),
            environment={
                **self.versions,
                **{f"weights {name}": sha for name, sha in self.digests[dimension].items()},
                "device": self.device.name,
                "precision": self.precision,
                "batch": str(self.batch),
                "threads": str(self.threads),
                "mode": self.scorer,
            },
        )

    def line(self, dimension: str) -> str:
        """``vbench 0.1.5, weights 0123456789ab, <device>, float32``."""
        held = self.digests[dimension]
        # One file is known by its own digest, several by a digest over theirs.
        sha = next(iter(held.values())) if len(held) == 1 else digest(dict(held))
        whose = "stand-in weights" if self.stand_in else "weights"
        weights = f"{whose} {sha[:_DIGEST]}" if held else "no weights"
        official = ", official functions" if self.scorer == OFFICIAL else ""
        return (
            f"vbench {self.versions['vbench']}, {weights}, {self.device.name}, "
            f"{self._computed_in(dimension)}{official}"
        )

    def _computed_in(self, dimension: str) -> str:
        if self.precision != FLOAT32:
            return f"{self.precision} (approximate)"
        # openai-clip turns its weights to half precision wherever they are loaded on CUDA.
        clip = any(name.startswith(_CLIP) for name in self.digests[dimension])
        halved = clip and self.device.id != "cpu"
        return "float16 (openai-clip on CUDA)" if halved else self.precision


def _asked(dimension: str, prompt: Prompt) -> dict[str, str]:
    """What of the prompt the value depends on."""
    known = DIMENSIONS.get(dimension)
    told = {
        "text": lambda: prompt.text,
        "label": lambda: action_label(prompt.text) or "",
        "auxiliary": lambda: canonical(auxiliary(prompt, dimension)),
    }
    return {name: told[name]() for name in (known.asks if known else ())}


@cache
def _sources(dimension: str, scorer: str) -> str:
    """Digest over the worker's sources that a value may depend on."""
    left_out = {*_SPEAKERS, *(_NOT_LIGHT if dimension in _LIGHT else ())}
    if scorer != OFFICIAL:
        left_out.add("official.py")
    return digest([s for s in worker_sources().items() if Path(s[0]).name not in left_out])
