"""What RAFT's optical flow is asked: dynamic degree, the static filter, the flow score."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vbench_worker import early_stop
from vbench_worker.decode import reading
from vbench_worker.judges import Score, UnscorableError
from vbench_worker.substitute import dimension_module, paths, replaced

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vbench_worker.clips import Clip
    from vbench_worker.judges import Settings, Shelf
    from vbench_worker.protocol import Want

RAFT = "raft-things"


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicDegree:
    """Whether a quarter of the pairs of frames, at 8 frames per second, hold large flow."""

    name: str = "dynamic_degree"
    models: tuple[str, ...] = (RAFT,)

    def score(self, clip: Clip, want: Want, shelf: Shelf) -> Score:
        """Judge one clip."""
        dynamic = shelf.get(RAFT)
        with reading(clip):
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
        with reading(clip):
            module = dimension_module("dynamic_degree")
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


def load_raft(settings: Settings) -> Any:
    """RAFT in the official class, with the arguments of ``compute_dynamic_degree``."""
    module, where = dimension_module("dynamic_degree"), paths("dynamic_degree")
    arguments = module.edict(
        model=where["model"], small=False, mixed_precision=False, alternate_corr=False
    )
    return module.DynamicDegree(arguments, settings.device)
