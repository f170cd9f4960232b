"""A Frechet video distance of a row's clips to the full-precision clips of the same prompts.

The distance is that of FVD (Unterthiner et al. 2018): both sets' features as Gaussians,

    d^2 = ||mu_a - mu_b||^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)),

with the unbiased covariance. The features are not those of FVD, so the metric carries the name of
its network, ``fvd_r3d18_to_fp``, and its values compare with no published FVD. FVD's network is an
I3D, which the package index has in cd-fvd only: its last release, 0.1.1, is of August 2024, fetches
weights while it scores, with no digest to check them by, and calls SciPy's sqrtm with an argument
that SciPy 1.18 removes. torchmetrics and torch-fidelity have networks of images only. torchvision's
r3d_18 (Kinetics-400) is kept with torch, and its weights' file is named after its digest.

The distance of finite sets is too large, by an amount that falls as one over their size: two draws
of 1 000 from one Gaussian of 512 features of unit variance are 133 apart, of 2 000 they are 66
apart. Values compare only at the same number of clips.

Frames are prepared by torchvision's own preset of these weights (128 x 171, centre crop 112), all
of them; features are the 512 values after the last pooling, one row a clip.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.score.fvd_weights import check_checkpoint, checkpoint_path, fvd_identity, fvd_missing
from harness.score.scorer import FILE, Clip, Scorer, clips_of
from harness.spec import FIDELITY, Metric, Prompt, Status, Value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from harness.spec import ModelSpec
    from harness.store.store import Entry, Store
    from harness.task import CellTask

METRIC = "fvd_r3d18_to_fp"
FEATURES = "features"  # what is stored of a clip: 512 values
# A covariance of 512 features has full rank from 513 clips on only.
MIN_CLIPS = 1000
MIN_FRAMES = 2


class FrechetDistance(Scorer):
    """A value of the whole row, from the features that are stored of each clip."""

    name = "fvd"
    about = "Frechet distance to fp, 1 000 clips or more"
    metrics = (
        Metric(
            name=METRIC, unit="distance", better="lower", title="FVD\nr3d18", block=FIDELITY,
            whole=True, digits=1,
        ),
    )  # fmt: skip
    reads = FILE
    packages = ("torch", "torchvision", "numpy")
    kept = (FEATURES,)

    def missing(self) -> str:
        """Whether its weights are there."""
        return fvd_missing()

    def refusal(self, model: ModelSpec, prompts: Sequence[Prompt], clips: int) -> str:
        """A covariance of 512 features needs as many clips and more."""
        del model, prompts
        return too_few(clips)

    def weights(self) -> str:
        """Digest of the checkpoint."""
        return fvd_identity()

    def score(self, clip: Clip, reference: Clip | None) -> Mapping[str, Any]:
        """Features of the coded frames."""
        del reference
        return {FEATURES: features(clip.coded_frames())}

    def values(
        self, store: Store, task: CellTask, troubles: Mapping[str, tuple[Status, str]]
    ) -> Iterator[Value]:
        """The distance of the row from the reference; nothing for the reference itself."""
        del troubles
        clips = list(clips_of(store, task))
        if not any(wanted.reference for wanted, _, _ in clips):
            return
        pairs = [
            (self._stored(store, clip), self._stored(store, other)) for _, clip, other in clips
        ]
        whole = [(a, b) for a, b in pairs if a and b]
        if len(whole) < len(clips):
            why = f"{len(whole)} of {len(clips)} clips have features"
            yield Value(metric=METRIC, status=Status.SKIPPED, detail=why)
            return
        try:
            found = distance([a for a, _ in whole], [b for _, b in whole])
        except HarnessError as cause:
            yield Value(metric=METRIC, status=Status.ERROR, detail=cause.message)
        else:
            yield Value(metric=METRIC, value=found)

    def _stored(self, store: Store, clip: Entry | None) -> list[float]:
        """Features of a clip; empty where it has none."""
        found = None if clip is None else self.find(store, _ANY, clip, None)
        return [] if found is None else list(found.values.get(FEATURES, ()))


_ANY = Prompt(id="", text="")  # features do not depend on what was asked


def too_few(clips: int) -> str:
    """Why so many clips give no distance, in one line; empty where they do."""
    if clips >= MIN_CLIPS:
        return ""
    return f"needs {MIN_CLIPS:_} clips, has {clips:_}".replace("_", " ")


def features(frames: np.ndarray, *, device: str = "cpu") -> list[float]:
    """Features of one clip; the network is loaded once in a process.

    Args:
        frames: The clip, uint8 ``[frames, height, width, 3]``.
        device: What torch computes on.

    Returns:
        512 values.

    Raises:
        HarnessError: The clip has one frame: nothing moves for a network of video to see.
        InfraError: The weights are not there or are not torchvision's.
    """
    import numpy as np
    import torch

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, not uint8 [T, H, W, 3]")
    if len(frames) < MIN_FRAMES:
        raise HarnessError(
            f"clip has {len(frames)} frame, r3d_18 needs {MIN_FRAMES}", "generate more frames"
        )
    network, prepare = _load(str(checkpoint_path()), device)
    with torch.inference_mode():
        clip = prepare(torch.tensor(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)).unsqueeze(0)
        found: list[float] = network(clip.to(device))[0].tolist()
    return found


def distance(
    of: Sequence[Sequence[float]], to: Sequence[Sequence[float]], *, at_least: int = MIN_CLIPS
) -> float:
    """Frechet distance of two sets of features; the order of either does not matter.

    Args:
        of: Features of the row's clips, ``[clips, features]``.
        to: Features of the reference's clips, ``[clips, features]``.
        at_least: Clips that each set must have.

    Raises:
        HarnessError: There are fewer clips, or a feature is not finite.
    """
    import numpy as np

    sets = [np.asarray(rows, dtype=np.float64) for rows in (of, to)]
    for rows in sets:
        if len(rows) < at_least:
            raise HarnessError(f"{METRIC} {too_few(len(rows))}", "generate more clips")
        if not np.isfinite(rows).all():
            raise HarnessError("features of a clip are not finite", "look at the clips of the row")
    shift = sets[0].mean(axis=0) - sets[1].mean(axis=0)
    spreads = [np.atleast_2d(np.cov(rows, rowvar=False)) for rows in sets]
    roots = [_root(spread) for spread in spreads]
    # Tr (S_a S_b)^(1/2) is the sum of the singular values of S_a^(1/2) S_b^(1/2), which unlike a
    # root of the product takes no root of rounding errors.
    overlap = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    found = shift @ shift + sum(np.trace(spread) for spread in spreads) - 2 * overlap
    return max(0.0, float(found))  # equal sets differ from zero by rounding, to either side


def _root(spread: np.ndarray) -> np.ndarray:
    """Symmetric square root of a covariance ``[d, d]``."""
    import numpy as np

    values, vectors = np.linalg.eigh(spread)
    root: np.ndarray = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    return root


@lru_cache(maxsize=1)
def _load(checkpoint: str, device: str) -> tuple[Any, Any]:
    """The network up to its last pooling, and the preset that prepares frames for it."""
    check_checkpoint()
    import torch
    from torchvision.models.video import R3D_18_Weights, r3d_18

    network = r3d_18(weights=None)
    network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    network.fc = torch.nn.Identity()
    return network.to(device).eval(), R3D_18_Weights.KINETICS400_V1.transforms()
