"""The dimensions with small models, each by its official function on a list of one clip.

Models are loaded by the lines that the official ``compute_*`` functions load them by, from the
paths that the package itself names.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbench_worker import lookahead
from vbench_worker.compat import private_imports, trusting_load
from vbench_worker.decode import reading
from vbench_worker.flow import RAFT, DynamicDegree, FlowScore, StaticFilter, load_raft
from vbench_worker.judges import MissingFileError, Score
from vbench_worker.precision import in_precision
from vbench_worker.substitute import dimension_module, paths, replaced, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vbench_worker.clips import Clip
    from vbench_worker.judges import Judge, Settings, Shelf
    from vbench_worker.protocol import Want

DINO = "dino-vitb16"
CLIP_B32 = "clip-vit-b-32"
AMT = "amt-s"
MUSIQ = "musiq-spaq"
DINO_FILE = "dino_vitbase16_pretrain.pth"

IMAGING_SCALE = 100.0  # the official per-clip value of imaging_quality; its aggregate divides by it


@contextmanager
def _official(name: str, clip: Clip) -> Iterator[Any]:
    """The official module of a dimension, reading this clip's decoded frames."""
    module = dimension_module(name)
    with reading(clip), replaced(module, tqdm=silent):
        yield module


def _score(raw: Any, *, scale: float = 1.0, weight: float = 1.0) -> Score:
    return Score(value=float(raw) / scale, weight=weight, facts={"official": float(raw)})


@dataclass(frozen=True, kw_only=True, slots=True)
class SubjectConsistency:
    """Similarity of DINO's features of each frame to the first and the previous one.

    The official aggregate is the mean over all frames but the first of all clips, so a clip weighs
    its frames less one.
    """

    name: str = "subject_consistency"
    models: tuple[str, ...] = (DINO,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip."""
        settings, model = shelf.settings, shelf.get(DINO)
        with _official(self.name, clip) as module:
            stand_in = nullcontext(model)
            if settings.batch > 1:
                stand_in = lookahead.subject_frames(module, model, settings.device, settings.batch)
            with stand_in as asked:
                _, (row,) = module.subject_consistency(
                    asked, [str(clip.link)], settings.device, False
                )
        return _score(row["video_results"], weight=clip.shape[0] - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundConsistency:
    """The same with CLIP ViT-B/32, which the official code gives the whole clip at once."""

    name: str = "background_consistency"
    models: tuple[str, ...] = (CLIP_B32,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip."""
        model = shelf.get(CLIP_B32)
        with _official(self.name, clip) as module:
            # The transform of images is for frames that lie in image files.
            _, (row,) = module.background_consistency(
                model, None, [str(clip.link)], shelf.settings.device, False
            )
        return _score(row["video_results"], weight=row["cnt_per_video"])


@dataclass(frozen=True, kw_only=True, slots=True)
class TemporalFlickering:
    """One less the mean absolute difference of neighbouring frames, in units of 255."""

    name: str = "temporal_flickering"
    models: tuple[str, ...] = ()

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip."""
        with _official(self.name, clip) as module:
            _, (row,) = module.temporal_flickering([str(clip.link)])
        return _score(row["video_results"])


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionSmoothness:
    """How well AMT interpolates each odd frame from its two neighbours."""

    name: str = "motion_smoothness"
    models: tuple[str, ...] = (AMT,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip."""
        settings, motion = shelf.settings, shelf.get(AMT)
        with _official(self.name, clip) as module:
            batches = nullcontext()
            if settings.batch > 1:
                batches = lookahead.interpolated_pairs(module, motion, settings.batch)
            with batches:
                _, (row,) = module.motion_smoothness(motion, [str(clip.link)])
        return _score(row["video_results"])


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagingQuality:
    """MUSIQ, trained on SPAQ, mean over all frames; the longer side at most 512."""

    name: str = "imaging_quality"
    models: tuple[str, ...] = (MUSIQ,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip."""
        settings, model = shelf.settings, shelf.get(MUSIQ)
        with _official(self.name, clip) as module:
            stand_in = nullcontext(model)
            if settings.batch > 1:
                stand_in = lookahead.quality_frames(module, model, settings.device, settings.batch)
            with stand_in as asked:
                _, (row,) = module.technical_quality(asked, [str(clip.link)], settings.device)
        return _score(row["video_results"], scale=IMAGING_SCALE)


def load_dino(settings: Settings) -> Any:
    """DINO ViT-B/16 by the hub, from the folder that the package names.

    The package's own list of paths asks for a second copy of the weights that nothing reads.

    Raises:
        MissingFileError: If the code or the weights are not there.
    """
    module = dimension_module("subject_consistency")
    code = settings.weights / "dino_model" / "facebookresearch_dino_main"
    checkpoint = Path(module.torch.hub.get_dir()) / "checkpoints" / DINO_FILE
    for path in (code / "hubconf.py", checkpoint):
        if not path.is_file():
            raise MissingFileError(f"{path} is missing; nothing is downloaded while scoring")
    with private_imports(code):
        model = module.torch.hub.load(str(code), "dino_vitb16", source="local")
    return in_precision(model.to(settings.device), settings)


def load_clip_b32(settings: Settings) -> Any:
    """CLIP ViT-B/32; background_consistency and appearance_style share it."""
    module = dimension_module("background_consistency")
    model, _ = module.clip.load(paths("background_consistency")[0], device=settings.device)
    return in_precision(model, settings)


def load_amt(settings: Settings) -> Any:
    """AMT-S in the official class.

    The device is a ``torch.device`` as in the official command: given as a string, ``cuda`` would
    have the official code scale large clips down by the memory of the card.
    """
    import vbench

    with private_imports(Path(vbench.__file__).parent / "third_party" / "amt"):
        module, where = dimension_module("motion_smoothness"), paths("motion_smoothness")
        with trusting_load(module):
            motion = module.MotionSmoothness(where["config"], where["ckpt"], settings.device)
    return motion


def load_musiq(settings: Settings) -> Any:
    """MUSIQ in the evaluation mode that the official code sets: on the outermost module only."""
    module, where = dimension_module("imaging_quality"), paths("imaging_quality")
    model = module.MUSIQ(pretrained_model_path=where["model_path"])
    model.to(settings.device)
    model.training = False
    return in_precision(model, settings)


JUDGES: dict[str, Judge] = {
    judge.name: judge
    for judge in (
        SubjectConsistency(),
        BackgroundConsistency(),
        TemporalFlickering(),
        MotionSmoothness(),
        DynamicDegree(),
        ImagingQuality(),
        StaticFilter(),
        FlowScore(),
    )
}

LOADERS: dict[str, Callable[[Settings], Any]] = {
    DINO: load_dino,
    CLIP_B32: load_clip_b32,
    AMT: load_amt,
    RAFT: load_raft,
    MUSIQ: load_musiq,
}
