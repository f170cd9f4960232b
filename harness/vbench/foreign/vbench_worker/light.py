"""The dimensions with small models, each by its official function on a list of one clip.

Models are loaded by the lines that the official ``compute_*`` functions load them by, from the
paths that the package itself names.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vbench_worker import early_stop, lookahead
from vbench_worker.compat import private_imports, trusting_load
from vbench_worker.decode import reading
from vbench_worker.judges import Score, UnscorableError
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
RAFT = "raft-things"
MUSIQ = "musiq-spaq"

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
class DynamicDegree:
    """Whether a quarter of the pairs of frames, at 8 frames per second, hold large flow."""

    name: str = "dynamic_degree"
    models: tuple[str, ...] = (RAFT,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip."""
        dynamic = shelf.get(RAFT)
        with _official(self.name, clip):
            verdict = early_stop.infer(
                dynamic, str(clip.link), early_stop.moves, extra_pairs=0, pairs=shelf.pairs
            )
        return Score(value=float(verdict), facts={"official": verdict})


@dataclass(frozen=True, kw_only=True, slots=True)
class StaticFilter:
    """Whether the official static filter passes a clip, whose flickering then counts."""

    name: str = "static_filter"
    models: tuple[str, ...] = (RAFT,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip."""
        with reading(clip), static_filter(shelf) as static:
            verdict = early_stop.infer(
                static, str(clip.link), early_stop.is_static, extra_pairs=2, pairs=shelf.pairs
            )
        return Score(value=float(verdict), facts={"official": verdict})


@contextmanager
def static_filter(shelf: Shelf) -> Iterator[Any]:
    """The official static filter on the RAFT that is loaded already, on the device of the job.

    Its own loading asks for a GPU, and its reader names the device ``cuda``.
    """
    from vbench.cli import static_filter as module

    dynamic = shelf.get(RAFT)
    static = module.StaticFilter.__new__(module.StaticFilter)
    static.args, static.device, static.model = dynamic.args, dynamic.device, dynamic.model
    with replaced(module, DEVICE=dynamic.device):
        yield static


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowScore:
    """Mean length of the optical flow, in pixels: the Flow-Score of EvalCrafter.

    EvalCrafter (Liu et al., CVPR 2024) averages the dense flow that RAFT finds in a clip. Here: the
    RAFT, the weights and the frames of dynamic_degree (8 per second, every pair of neighbours), the
    mean over all pixels and pairs, in pixels of the clip's own size. It therefore compares clips of
    one size, and is not the number of another flow network, step or size.
    """

    name: str = "flow_score"
    models: tuple[str, ...] = (RAFT,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip.

        Raises:
            UnscorableError: If only one of its frames is looked at.
        """
        dynamic, lengths = shelf.get(RAFT), []
        height, width = clip.shape[1:3]
        with _official("dynamic_degree", clip) as module:
            padder = module.InputPadder((height, width))

            def measure(image: Any, flow: Any) -> float:
                inside = padder.unpad(flow)[0].double()
                lengths.append(float(inside.square().sum(0).sqrt().mean()))
                return lengths[-1]

            with replaced(dynamic, get_score=measure):
                dynamic.infer(str(clip.link))
        if not lengths:
            raise UnscorableError("has one frame at 8 frames per second, needs 2")
        shelf.pairs.update(run=len(lengths), of=len(lengths))
        return Score(value=float(np.mean(lengths)), facts={"pairs": len(lengths)})


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
    """DINO ViT-B/16 through torch.hub, from the folder that the package names."""
    module, where = dimension_module("subject_consistency"), paths("subject_consistency")
    with private_imports(Path(where["repo_or_dir"])):
        model = module.torch.hub.load(**where)
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


def load_raft(settings: Settings) -> Any:
    """RAFT in the official class, with the arguments of ``compute_dynamic_degree``."""
    module, where = dimension_module("dynamic_degree"), paths("dynamic_degree")
    arguments = module.edict(
        model=where["model"], small=False, mixed_precision=False, alternate_corr=False
    )
    return module.DynamicDegree(arguments, settings.device)


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
