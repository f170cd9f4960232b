"""Batches, models and scores."""

from __future__ import annotations

from collections import Counter
from typing import Any

from checking import opened, raises, shelf
from vbench_worker.protocol import is_oom


def check_a_loop_out_of_step_is_an_error() -> None:
    import torch
    from vbench_worker.lookahead import Ahead, OutOfStepError

    questions = [(torch.full((1, 2), float(i)),) for i in range(5)]
    batches = []

    def compute(asked: Any) -> list[float]:
        batches.append(len(asked))
        return [float(q.sum()) for (q,) in asked]

    ahead = Ahead(2, compute)
    ahead.expect(questions)
    assert [ahead.ask(q) for q in questions] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert batches == [2, 2, 1]
    raises(OutOfStepError, ahead.ask, questions[0])
    ahead.expect(questions)
    raises(OutOfStepError, ahead.ask, questions[1])


def check_batches_of_styled_frames_are_the_official_frames() -> None:
    import torch
    from vbench import appearance_style as module
    from vbench_worker.decode import reading
    from vbench_worker.light import CLIP_B32
    from vbench_worker.lookahead import styled_frames

    models, clip = shelf(), opened()
    model, device = models.get(CLIP_B32), torch.device("cpu")
    entry = {"auxiliary_info": {"appearance_style": "in pencil"}, "video_list": [str(clip.link)]}
    with reading(clip):
        _, (plain,) = module.appearance_style(model, [entry], device)
        with styled_frames(module, model, clip.frames_rgb, device, 3) as stand_in:
            _, (batched,) = module.appearance_style(stand_in, [entry], device)
    for one, other in zip(plain["frame_results"], batched["frame_results"], strict=True):
        # Another batch is another order of summation in the matrix products.
        assert abs(one - other) < 1e-6


def check_bfloat16_is_for_feature_networks_and_only_where_asked_for() -> None:
    import torch
    from vbench_worker.flow import RAFT
    from vbench_worker.light import AMT, CLIP_B32, DINO, MUSIQ
    from vbench_worker.precision import Autocast

    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    exact, coarse = (shelf(precision=p).get(DINO)(image) for p in ("float32", "bfloat16"))
    assert exact.dtype == coarse.dtype == torch.float32
    assert not torch.equal(exact, coarse)
    assert torch.allclose(exact, coarse, atol=0.1)
    for precision in ("float32", "bfloat16"):
        models = shelf(precision=precision)
        for name in (DINO, CLIP_B32, MUSIQ):
            assert isinstance(models.get(name), Autocast) == (precision == "bfloat16")
        for name in (AMT, RAFT):
            assert isinstance(models.get(name).model, torch.nn.Module)


def check_a_model_that_does_not_load_is_tried_once() -> None:
    from vbench_worker.judges import ModelError

    models = shelf()
    models.loaders = {"none": lambda _: 1 / 0}
    for _ in range(2):
        assert raises(ModelError, models.get, "none") == "none"
    assert models.loads == Counter({"none": 1})


def check_exhausted_memory_is_told_from_other_errors() -> None:
    import torch
    from vbench_worker.judges import ModelError
    from vbench_worker.scoring import status_of

    wrapped = ModelError("raft-things")
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate"), wrapped):
        assert status_of(error)[0] == "oom"
    assert not is_oom(RuntimeError("size mismatch"))
    assert status_of(RuntimeError("size mismatch"))[0] == "error"


def check_no_number_is_no_score() -> None:
    import io

    from vbench_worker.judges import Score
    from vbench_worker.protocol import Events, Want
    from vbench_worker.scoring import NotANumberError, Scoring

    want = Want(dimension="imaging_quality", key="k", auxiliary=None)
    events = Events(out=io.StringIO())
    scoring = Scoring(job=None, events=events, shelf=None, judges={})
    raises(NotANumberError, scoring._send, want, Score(value=float("nan")))
    assert events.out.getvalue() == ""


def check_the_device_of_amt_is_no_string() -> None:
    import torch
    from vbench_worker.light import AMT

    # Compared with the string, 'cuda' would switch on scaling by the memory of the card.
    assert isinstance(shelf().get(AMT).device, torch.device)


def check_no_action_is_read_from_the_name_of_another_file() -> None:
    from vbench_worker.action import HumanAction
    from vbench_worker.judges import UnscorableError

    clip = opened("A person is riding a bike/scooter")
    assert "file name" in raises(UnscorableError, HumanAction().score, clip, None, None)


def check_a_clip_for_which_memory_runs_out_does_not_end_the_others() -> None:
    import io
    import json
    import os
    import tempfile
    from pathlib import Path

    from checking import CLIP
    from vbench_worker.judges import Score
    from vbench_worker.protocol import ClipJob, Events, Job, Want
    from vbench_worker.scoring import Scoring

    class Judge:
        def score(self, clip: Any, *_: Any) -> Score:
            if clip.id == "b":
                raise MemoryError
            return Score(value=0.5)

    clips = tuple(
        ClipJob(
            id=name,
            path=CLIP,
            prompt="p",
            index=0,
            wants=(Want(dimension="imaging_quality", key=name, auxiliary=None),),
        )
        for name in "abc"
    )
    options: dict[str, Any] = {"scorer": "shared", "device": "cpu", "threads": 1, "batch": 1}
    options |= {"precision": "float32", "weights": CLIP.parent, "parent": os.getpid()}
    job = Job(scratch=Path(tempfile.mkdtemp()), clips=clips, **options)
    events = Events(out=io.StringIO())
    Scoring(job=job, events=events, shelf=shelf(), judges={"imaging_quality": Judge()}).run()
    said = [json.loads(line) for line in events.out.getvalue().splitlines()]
    assert [e["key"] for e in said if e["event"] == "score"] == ["a", "c"]
    (trouble,) = [e for e in said if e["event"] == "trouble"]
    assert (trouble["status"], trouble["keys"]) == ("oom", ["b"])
