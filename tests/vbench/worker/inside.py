"""Checks that need the official package; a script for the scoring interpreter.

``python inside.py WEIGHTS CLIP``: a folder of random weights and a small clip. Prints a JSON
object: for each function named ``check_*`` an empty string, or how it failed. ``test_inside.py``
makes a test of each.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
import types
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from vbench_worker import compat
from vbench_worker.protocol import ClipJob, is_oom
from vbench_worker.substitute import replaced

WEIGHTS, CLIP = (Path(argument).resolve() for argument in sys.argv[1:3])


def raises(kind: type[BaseException], action: Any, *args: Any, **options: Any) -> str:
    """The message of the exception that an action must raise."""
    try:
        action(*args, **options)
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def opened(prompt: str = "a prompt", folder: str = "clip") -> Any:
    from vbench_worker.clips import open_clip
    from vbench_worker.decode import Readers

    job = ClipJob(id=folder, path=CLIP, prompt=prompt, index=0, wants=())
    return open_clip(job, Path(tempfile.mkdtemp()), Readers())


def shelf(batch: int = 1, precision: str = "float32") -> Any:
    import torch
    from vbench_worker.judges import Settings, Shelf, all_loaders

    settings = Settings(
        device=torch.device("cpu"), precision=precision, weights=WEIGHTS, batch=batch
    )
    return Shelf(settings=settings, loaders=all_loaders())


# The measures


def check_torchvision_imports_where_it_would_not() -> None:
    import torch

    alone = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True)
    import torchvision

    assert torchvision.transforms.Resize
    # `prepare` has run: where it was needed both operators have a schema now.
    if alone.returncode != 0:
        assert b"nms does not exist" in alone.stderr, alone.stderr
        assert torch.ops.torchvision.nms
        assert torch.ops.torchvision.qnms
    assert compat.torchvision_schemas() == compat.NOT_NEEDED


def check_torchvision_of_a_cuda_torch_is_left_alone() -> None:
    import torch

    with replaced(torch.version, cuda="13.0"):
        assert compat.torchvision_schemas() == compat.NOT_NEEDED


def check_a_pkg_resources_without_packaging_gets_it() -> None:
    before = sys.modules.pop("pkg_resources", None)
    try:
        sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")
        assert compat.packaging_in_pkg_resources() == compat.APPLIED
        from pkg_resources import packaging

        assert packaging.version.parse("1.10") > packaging.version.parse("1.9")
        assert compat.packaging_in_pkg_resources() == compat.NOT_NEEDED
    finally:
        del sys.modules["pkg_resources"]
        if before is not None:
            sys.modules["pkg_resources"] = before


def check_a_numpy_without_function_base_gets_it() -> None:
    name = "numpy.lib.function_base"
    before = sys.modules.pop(name, None)
    try:
        with replaced(importlib.util, find_spec=lambda _: None):
            assert compat.function_base_in_numpy() == compat.APPLIED
        from numpy.lib.function_base import disp

        assert callable(disp)
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def check_umt_is_not_given_the_cache_dir_of_timm() -> None:
    from vbench.third_party.umt.models import modeling_finetune

    given: dict[str, Any] = {}

    class Network:
        def __init__(self, **options: Any) -> None:
            given.update(options)

    with replaced(modeling_finetune, VisionTransformer=Network):
        compat.without_cache_dir_(modeling_finetune)
        modeling_finetune.vit_large_patch16_224(cache_dir=None, num_classes=7)
    assert "cache_dir" not in given
    assert given["num_classes"] == 7


def check_nothing_records_gradients() -> None:
    import torch

    parameter = torch.ones(1, requires_grad=True)
    assert not (2 * parameter).requires_grad


def check_kernels_of_a_gpu_are_deterministic() -> None:
    import torch

    with replaced(torch.cuda, is_available=lambda: False):
        assert compat.steady_numbers() == compat.NOT_NEEDED
    with replaced(torch.cuda, is_available=lambda: True):
        assert compat.steady_numbers() == compat.APPLIED
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    torch.use_deterministic_algorithms(torch.cuda.is_available(), warn_only=True)


def check_paths_lead_to_the_weights() -> None:
    import torch
    from vbench.utils import CACHE_DIR

    assert str(WEIGHTS) == CACHE_DIR
    assert torch.hub.get_dir() == str(WEIGHTS / "torch" / "hub")
    assert Path.cwd() == WEIGHTS


def check_no_program_downloads() -> None:
    from vbench_worker.judges import MissingFileError

    url = "https://host.invalid/a/file.pth"
    for command in (["wget", url, "-P", "/cache/x"], ["/usr/bin/wget", "-P", "/cache/x", url]):
        assert "/cache/x/file.pth is missing" in raises(MissingFileError, subprocess.run, command)
    for command in (["git", "clone", url, "/cache/dino"], ["unzip", "-d", "/c", "/cache/dino"]):
        assert "/cache/dino is missing" in raises(MissingFileError, subprocess.run, command)
    assert subprocess.run([sys.executable, "-c", ""], check=True).returncode == 0


def check_no_library_downloads() -> None:
    import torch
    from vbench_worker.judges import MissingFileError

    url = "https://host.invalid/a/file.pth"
    assert url in raises(MissingFileError, urllib.request.urlopen, url)
    assert url in raises(MissingFileError, torch.hub.load_state_dict_from_url, url)
    for address in (("host.invalid", 443), ("192.0.2.1", 443)):
        assert address[0] in raises(MissingFileError, socket.create_connection, address)


def check_the_package_names_the_file_that_is_missing() -> None:
    from vbench import utils
    from vbench_worker.judges import MissingFileError
    from vbench_worker.substitute import paths

    with replaced(utils, CACHE_DIR="/nowhere-vbench"), replaced(os, makedirs=lambda *_, **__: None):
        for dimension, file in (
            ("motion_smoothness", "amt_model/amt-s.pth"),
            ("subject_consistency", "dino_model/facebookresearch_dino_main/"),
            ("dynamic_degree", "models.zip"),
        ):
            assert file in raises(MissingFileError, paths, dimension)


def check_a_checkpoint_with_more_than_tensors_loads_only_where_it_is_trusted() -> None:
    import torch

    module = types.SimpleNamespace(torch=torch)
    with tempfile.NamedTemporaryFile() as file:
        torch.save({"state_dict": {}, "args": argparse.Namespace(a=1)}, file.name)
        raises(Exception, module.torch.load, file.name)
        with compat.trusting_load(module):
            assert module.torch.load(file.name, map_location="cpu")["args"].a == 1
            assert module.torch.nn is torch.nn
        raises(Exception, module.torch.load, file.name)


def check_amt_and_dino_load_in_either_order() -> None:
    from vbench_worker.light import AMT, DINO

    path = list(sys.path)
    for order in ((AMT, DINO), (DINO, AMT)):
        models = shelf()
        for name in order:
            models.get(name)
        assert sys.path == path
        assert not {"utils", "networks", "hubconf", "vision_transformer"} & sys.modules.keys()


# Decoding


def check_the_official_readers_see_the_decoded_frames() -> None:
    import numpy as np
    import torch
    from vbench.temporal_flickering import get_frames
    from vbench.utils import load_video, read_frames_decord_by_fps
    from vbench_worker.decode import reading

    clip = opened()
    path = str(clip.link)

    def read() -> list[np.ndarray]:
        return [
            load_video(path).numpy(),
            load_video(path, num_frames=2, return_tensor=False),
            load_video(path, num_frames=16, return_tensor=False),
            read_frames_decord_by_fps(path, num_frames=8, sample="middle").numpy(),
            np.stack(get_frames(path)),
        ]

    theirs = read()
    before = clip.readers.decodes
    with reading(clip):
        ours = read()
        again = read()
    assert before == 0
    assert clip.readers.decodes == 1
    assert clip.readers.scaled == 0
    for a, b, c in zip(theirs, ours, again, strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)
    assert isinstance(load_video(path), torch.Tensor)


def check_a_dimension_that_scales_while_decoding_gets_the_real_reader() -> None:
    import numpy as np
    from vbench.utils import load_video
    from vbench_worker.decode import reading

    clip = opened()
    options: dict[str, Any] = {"num_frames": 2, "return_tensor": False, "width": 96, "height": 64}
    theirs = load_video(str(clip.link), **options)
    with reading(clip):
        ours = load_video(str(clip.link), **options)
    assert np.array_equal(theirs, ours)
    assert clip.readers.scaled == 1


def check_no_dimension_can_change_the_frames_of_the_next() -> None:
    clip = opened()
    for frames in (clip.frames_rgb, clip.frames_bgr):
        raises(ValueError, frames.__setitem__, 0, 0)


def check_readers_that_disagree_are_both_used() -> None:
    import numpy as np
    from vbench_worker import decode

    true = decode._read_decord(CLIP)
    other = true.copy()
    other[0, 0, 0, 0] ^= 1
    readers = decode.Readers()
    with replaced(decode, _read_decord=lambda _: other.copy()):
        footage = decode.read_footage(CLIP, readers)
        assert np.array_equal(footage.rgb, other)
    assert np.array_equal(footage.bgr[..., ::-1], true)
    counts = readers.counts()
    assert (counts["decodes"], counts["reader_checks"], counts["readers_agree"]) == (2, 1, False)


def check_frames_that_decord_cannot_hand_out_are_those_of_cv2() -> None:
    import numpy as np
    from vbench_worker import decode

    readers = decode.Readers()
    with replaced(decode, _read_decord=lambda _: None):
        footage = decode.read_footage(CLIP, readers)
        assert np.array_equal(footage.rgb, footage.bgr[..., ::-1])
    assert readers.counts()["refused_by_decord"] == 1


def check_a_dimension_that_reads_by_cv2_does_not_start_decord() -> None:
    from vbench_worker import decode

    with replaced(decode, _read_decord=None):
        clip = opened()
        assert clip.shape == (5, 128, 128, 3)
        assert clip.frames_bgr.shape == clip.shape
    assert clip.readers.counts()["reader_checks"] == 0


def check_links_have_the_official_names() -> None:
    upper, lower = opened("A fantasy landscape"), opened("a fantasy landscape", "clip2")
    assert upper.link.name == "A fantasy landscape-0.mp4"
    assert lower.link.name == "a fantasy landscape-0.mp4"
    assert upper.link.resolve() == CLIP
    # 255 bytes is the limit of a name, and a cedilla takes two.
    assert opened("ç" * 124 + "x").named
    for prompt in ("ç" * 125, "either/or"):
        clip = opened(prompt)
        assert not clip.named
        assert clip.link.name == "clip-0.mp4"


# Early stop


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
    from vbench_worker.judges import SIDES
    from vbench_worker.light import AMT, RAFT

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


# Batches


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


def check_bfloat16_only_changes_what_asks_for_it() -> None:
    import torch
    from vbench_worker.light import DINO

    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    exact, coarse = (shelf(precision=p).get(DINO)(image) for p in ("float32", "bfloat16"))
    assert exact.dtype == coarse.dtype == torch.float32
    assert not torch.equal(exact, coarse)
    assert torch.allclose(exact, coarse, atol=0.1)


# Judges and scores


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


def main() -> None:
    """Run all checks."""
    compat.prepare(WEIGHTS)
    import torch

    torch.set_num_threads(1)
    found = {}
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            try:
                check()
                found[name] = ""
            except Exception:
                found[name] = traceback.format_exc()
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
