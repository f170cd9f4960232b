"""What a worker makes of a row, on the miniature: stages, resuming, clips that diverge."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import harness.generate.generate
import harness.models.load
from harness.errors import DivergedError
from harness.generate.generate import (
    FACTS_FILE,
    LATENTS_FILE,
    LOSSLESS_FILE,
    execution_values,
    row_execution,
)
from harness.generate.text import CUT
from harness.generate.video import read
from harness.kernels.dispatch import install_kernels_
from harness.kernels.layer import KernelLinear
from harness.models.families import family_by_name
from harness.models.sample import sample_clip
from harness.plan.experiment import Flags, resolve
from harness.plan.experiment_file import ExperimentFile
from harness.quant.layers.artifact import load_artifact_
from harness.run.alive import Pulse
from harness.run.run import prepare
from harness.run.worker import Events, failure, run_job
from harness.spec import Status
from harness.store.store import Store
from harness.task import Job

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.plan.plan import Plan

PROMPTS = ("a red circle moving left", "a blue square on the white background moves up")
STEPS = 3


@pytest.fixture
def plan(
    tmp_path: Path, tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Plan]:
    """Plan rows of the miniature; the second prompt is longer than its encoder reads."""
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))

    def made(*methods: str, **gen: Any) -> Plan:
        file = ExperimentFile.model_validate({"gen": {"steps": STEPS, "guidance": 4.0, **gen}})
        flags = Flags(
            models=(str(tiny_pipeline_folder),),
            methods=methods,
            suite=str(tmp_path / "p.txt"),
            out=tmp_path / "out",
            baselines=False,
        )
        return prepare(resolve(file, flags), Store()).plan

    return made


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The parts of each pipeline that is opened."""
    found: list[set[str]] = []
    load = harness.models.load.load_pipeline

    def noted(spec: Any, **how: Any) -> Any:
        found.append(set(how["parts"]))
        return load(spec, **how)

    monkeypatch.setattr("harness.models.load.load_pipeline", noted)
    return found


def work(task: Any) -> list[dict[str, Any]]:
    out = io.StringIO()
    job = Job(task=task, store=Store().root, device="cpu", threads=1, parent=0)
    run_job(Job.from_json(job.to_json()), Events(out=out), Pulse(lambda: None))
    return [json.loads(line) for line in out.getvalue().splitlines()]


def kept(kind: str) -> int:
    return sum(of == kind for of, _, _ in Store().entries())


def test_each_stage_opens_its_own_network_and_the_clip_is_that_of_the_whole_pipeline(
    plan: Callable[..., Plan], opened: list[set[str]]
) -> None:
    found = plan("rtn")
    (texts,) = found.texts.values()
    assert set(texts.texts) == {"", *PROMPTS}
    work(texts)
    assert opened == [{"text"}]
    fp, rtn = found.cells
    said = work(fp.task)
    assert opened[1:] == [{"denoiser"}, {"decoder"}]
    assert [line["event"] for line in said].count("clip") == len(PROMPTS)
    work(rtn.task)
    # quantized, verified, sampled from the artifact alone, decoded
    assert opened[3:] == [{"denoiser"}, {"denoiser"}, set(), {"decoder"}]
    assert kept("latents") == 0
    whole = harness.models.load.load_pipeline(
        fp.task.model, device="cpu", dtype="float32", parts={"text", "denoiser", "decoder"}
    )
    rows = [(fp, wanted) for wanted in fp.task.clips] + [(rtn, rtn.task.clips[0])]
    for row, wanted in rows:
        if row is rtn:
            assert rtn.task.artifact is not None
            load_artifact_(whole.transformer, Store().folder("artifact", rtn.task.artifact.key))
            family = family_by_name(rtn.task.model.family)
            device = torch.device("cpu")
            execution = install_kernels_(whole.transformer, family, setting="auto", device=device)
            told = row_execution(Store(), rtn.task.clips)
            assert told == dataclasses.asdict(execution)
            (count,) = execution_values(Store(), rtn.task.clips, told)
            by_kernel = [m for m in whole.transformer.modules() if isinstance(m, KernelLinear)]
            assert (count.metric, count.value) == ("kernel_linears", len(by_kernel))
            assert row_execution(Store(), fp.task.clips) is None
        clip = Store().find("clip", wanted.clip.key)
        assert clip is not None
        made = sample_clip(whole, wanted.prompt.text, row.task.gen, seed=wanted.noise_seed)
        latents = load_file(clip.folder / LATENTS_FILE)["latents"]
        assert torch.equal(latents, made.latents)
        assert np.array_equal(read(clip.folder / LOSSLESS_FILE), made.frames)
    again = plan("rtn")
    assert not again.texts
    assert all(cell.done for cell in again.cells)


def test_a_row_that_is_killed_while_it_decodes_goes_on_from_its_latents(
    plan: Callable[..., Plan], opened: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan("control")
    (texts,) = found.texts.values()
    work(texts)
    decode, calls = harness.generate.generate.decode_clip, 0

    def killed(*given: Any, **more: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return decode(*given, **more)

    monkeypatch.setattr("harness.generate.generate.decode_clip", killed)
    with pytest.raises(KeyboardInterrupt):
        work(found.cells[0].task)
    assert (kept("clip"), kept("latents")) == (1, 1)
    opened.clear()
    work(found.cells[0].task)
    assert opened == [{"decoder"}]
    assert (kept("clip"), kept("latents")) == (2, 0)


def test_prompts_that_the_encoder_cuts_are_counted_with_their_clips(
    plan: Callable[..., Plan],
) -> None:
    from harness.generate.generate import cut_remarks

    found = plan("control")
    (texts,) = found.texts.values()
    work(texts)
    task = found.cells[0].task
    work(task)
    first, second = (Store().find("clip", wanted.clip.key) for wanted in task.clips)
    assert first is not None
    assert second is not None
    assert first.json(FACTS_FILE)[CUT] == []
    cut = second.json(FACTS_FILE)[CUT]
    limit = task.gen.max_text_tokens
    assert cut == [{"tokenizer": "tokenizer", "limit": limit, "tokens": 10 - limit}]
    assert cut_remarks(Store(), task.clips, "tiny") == [
        f"tiny: 1 of 2 prompts are cut at the {limit} tokens of its tokenizer, by up to "
        f"{10 - limit} tokens"
    ]


@pytest.mark.parametrize("place", ["step 2 of 3", "decoding"])
def test_a_clip_that_diverges_is_neither_published_nor_judged_and_its_row_says_so(
    plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    found = plan("control", dtype="float32")
    (texts,) = found.texts.values()
    work(texts)
    fp, control = (cell.task for cell in found.cells)
    work(fp)
    poison(monkeypatch, place, clip=2)
    with pytest.raises(DivergedError) as caught:
        work(control)
    assert caught.value.message == f"1 of 2 clips diverged at {place}"
    told = failure(caught.value)
    assert told["status"] is Status.DIVERGED
    assert [Store().find("clip", c.clip.key) is None for c in control.clips] == [False, True]
    assert kept("latents") == (1 if place == "decoding" else 0)
    assert len(scored(control)) == 1


def test_the_first_row_ends_with_its_first_clip_that_diverges(
    plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan("control", dtype="float16")
    (texts,) = found.texts.values()
    work(texts)
    calls = poison(monkeypatch, "step 2 of 3", clip=1)
    with pytest.raises(DivergedError) as caught:
        work(found.cells[0].task)
    assert calls() == 2
    assert kept("clip") == 0
    detail = failure(caught.value)["detail"]
    assert detail.startswith("1 of 2 clips diverged at step 2 of 3; the others were not made")
    assert 'try dtype = "bfloat16"' in detail


def scored(task: Any) -> list[str]:
    """Prompts of a row that fidelity was made for."""
    from harness.score.registry import load_scorer

    scorer = load_scorer("fidelity")
    return [
        value.prompt
        for value in scorer.values(Store(), task, {})
        if value.metric == "psnr_db" and value.value is not None
    ]


def poison(monkeypatch: pytest.MonkeyPatch, place: str, *, clip: int) -> Callable[[], int]:
    """Make one clip diverge: in its second step, or in the decoder. Gives the calls so far."""
    load, calls = harness.models.load.load_pipeline, 0
    at = clip if place == "decoding" else (clip - 1) * STEPS + 2

    def spoil(module: Any, args: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            output[0].fill_(float("nan"))
        return output

    def doctored(spec: Any, **how: Any) -> Any:
        pipeline = load(spec, **how)
        if place == "decoding" and "decoder" in how["parts"]:
            pipeline.vae.decoder.register_forward_hook(spoil)
        if place != "decoding" and "denoiser" in how["parts"]:
            pipeline.transformer.register_forward_hook(spoil)
        return pipeline

    monkeypatch.setattr("harness.models.load.load_pipeline", doctored)
    return lambda: calls
