"""RAFT on no more pairs than decide, and the flow score."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from checking import opened, raises, shelf
from vbench_worker.substitute import replaced


class _Flow:
    """Stands for RAFT: its flows are the scores that a list says."""

    def __init__(self, scores: tuple[float, ...]) -> None:
        self.scores = list(scores)
        self.calls = 0

    def __call__(self, *_: Any, **__: Any) -> tuple[None, float]:
        self.calls += 1
        return None, self.scores[self.calls - 1]


class _Unpadded:
    def __init__(self, *_: Any) -> None: ...

    def pad(self, *images: Any) -> tuple[Any, ...]:
        return images


def _same_verdicts(module: Any, name: str, rule: Any, extra: int, levels: Any, most: int) -> float:
    """Compare with the untouched class on all lists of scores; returns the least share of pairs."""
    import torch
    from vbench_worker import early_stop

    frame = torch.zeros(1, 3, 256, 256)
    least = 1.0
    with replaced(module, InputPadder=_Unpadded):
        for frames in range(1, most + 2 - extra):
            for scores in itertools.product(levels, repeat=frames - 1 + extra):
                judge = getattr(module, name).__new__(getattr(module, name))
                judge.get_frames = lambda _, frames=frames: [frame] * frames
                judge.get_score = lambda _, flow: flow
                judge.model = _Flow(scores)
                theirs = judge.infer("clip.mp4")
                assert judge.model.calls == len(scores)
                judge.model, pairs = _Flow(scores), Counter()
                ours = early_stop.infer(judge, "clip.mp4", rule, extra_pairs=extra, pairs=pairs)
                assert ours == theirs, scores
                assert pairs == Counter({"run": judge.model.calls, "of": len(scores)})
                if scores:
                    least = min(least, pairs["run"] / pairs["of"])
    return least


def check_dynamic_degree_is_the_official_one_for_all_lists_of_twelve_scores() -> None:
    from vbench import dynamic_degree
    from vbench_worker.early_stop import moves

    # The threshold of a frame of 256 pixels is 6; a score equal to it is not above it.
    least = _same_verdicts(dynamic_degree, "DynamicDegree", moves, 0, (6.0, 6.1), 12)
    assert least <= 1 / 4
    nan = float("nan")
    _same_verdicts(dynamic_degree, "DynamicDegree", moves, 0, (nan, 5.0, 7.0), 5)


def check_the_static_filter_is_the_official_one_for_all_lists_of_eight_scores() -> None:
    from vbench.cli import static_filter
    from vbench_worker.early_stop import is_static

    # Its threshold is 3, and twice the counted number of thresholds for the two pairs at the end.
    _same_verdicts(static_filter, "StaticFilter", is_static, 2, (0.0, 3.1, 6.1), 8)


def check_a_moving_clip_takes_at_most_a_third_of_the_pairs() -> None:
    from vbench import dynamic_degree
    from vbench_worker import early_stop

    for frames in (8, 16, 17, 24, 49):
        judge = dynamic_degree.DynamicDegree.__new__(dynamic_degree.DynamicDegree)
        pairs: Counter[str] = Counter()
        with replaced(dynamic_degree, InputPadder=_Unpadded):
            import torch

            judge.get_frames = lambda _, n=frames: [torch.zeros(1, 3, 8, 8)] * n
            judge.get_score = lambda _, flow: flow
            judge.model = _Flow((9.0,) * frames)
            options: dict[str, Any] = {"extra_pairs": 0, "pairs": pairs}
            assert early_stop.infer(judge, "clip.mp4", early_stop.moves, **options)
        assert pairs["of"] == frames - 1
        assert pairs["run"] <= pairs["of"] / 3


def check_flow_networks_need_the_stated_size() -> None:
    import torch
    from vbench import dynamic_degree, motion_smoothness
    from vbench_worker.flow import RAFT
    from vbench_worker.judges import SIDES
    from vbench_worker.light import AMT

    models = shelf()
    motion, dynamic = models.get(AMT), models.get(RAFT)
    for below in (1, 0):
        frames = torch.rand(2, 1, 3, SIDES["motion_smoothness"] - below, 128)
        first, second = motion_smoothness.InputPadder(frames[0].shape).pad(*frames)
        options: dict[str, Any] = {"scale_factor": 1.0, "eval": True}
        made = motion.model(first, second, motion.embt, **options)["imgt_pred"]
        assert bool(made.isnan().all()) == bool(below)
        frames = 255 * torch.rand(2, 1, 3, 128, SIDES["dynamic_degree"] - below)
        first, second = dynamic_degree.InputPadder(frames[0].shape).pad(*frames)
        flow = dynamic.model(first, second, iters=2, test_mode=True)[1]
        assert bool(flow.isnan().all()) == bool(below)


def check_the_flow_score_is_the_mean_length_of_the_flow_in_pixels() -> None:
    import torch
    from vbench_worker.flow import RAFT, FlowScore
    from vbench_worker.judges import UnscorableError

    models, clip = shelf(), opened()
    official = models.get(RAFT).get_score

    def flow(first: Any, second: Any, **_: Any) -> tuple[None, torch.Tensor]:
        # 3 across and 4 down make 5; half of the picture is at rest.
        field = torch.zeros(1, 2, *first.shape[-2:])
        field[:, 0, : first.shape[-2] // 2], field[:, 1, : first.shape[-2] // 2] = 3.0, 4.0
        return None, field

    models.get(RAFT).model = flow
    score = FlowScore().score(clip, None, models)
    assert score.value == 2.5
    assert score.facts == {"pairs": 4}
    assert models.pairs == Counter({"run": 4, "of": 4})
    assert models.get(RAFT).get_score == official
    clip.footage.fps = 60.0
    raises(UnscorableError, FlowScore().score, clip, None, models)
