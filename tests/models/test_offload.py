"""Offloading moves weights and changes no result.

A processor is the only device here: the hooks are the real ones, and what they move comes back to
where it was. That they move at all is seen by the calls of the hooks.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
import torch

from harness.bits import BitSpec
from harness.method import QuantContext
from harness.models.families import family_by_name
from harness.models.offload import (
    BLOCKS,
    COMPONENTS,
    NONE,
    OFFLOADS,
    computing_device,
    offloaded,
    place_,
    resident,
)
from harness.models.sample import denoise, denoiser_step, sample_clip
from harness.models.trajectories import record_pool
from harness.plan.registry import load_method
from harness.spec import Prompt
from harness.testing import miniatures

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
GEN = miniatures.TINY_GEN
NAMES = ("cogvideox", "wan")


def placed(name: str, offload: str) -> Any:
    pipeline = getattr(miniatures, name)()
    place_(pipeline, device="cpu", offload=offload)
    return pipeline


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("offload", [COMPONENTS, BLOCKS])
def test_a_clip_is_the_same_bit_for_bit(name: str, offload: str):
    exact = sample_clip(placed(name, NONE), "a red circle", GEN, seed=0)
    pipeline = placed(name, offload)
    assert offloaded(pipeline.transformer)
    assert offloaded(pipeline.text_encoder)
    assert computing_device(pipeline).type == "cpu"
    moved = sample_clip(pipeline, "a red circle", GEN, seed=0)
    assert torch.equal(exact.latents, moved.latents)
    assert (exact.frames == moved.frames).all()


def test_nothing_is_attached_without_offload_nor_where_there_is_one_component():
    assert not offloaded(placed("cogvideox", NONE).transformer)
    alone = miniatures.cogvideox()
    alone.text_encoder = alone.vae = None
    place_(alone, device="cpu", offload=COMPONENTS)
    assert not offloaded(alone.transformer)
    with pytest.raises(ValueError, match="none, components, blocks"):
        place_(alone, device="cpu", offload="disk")
    assert OFFLOADS == (NONE, COMPONENTS, BLOCKS)


def test_every_block_is_fetched_for_itself_at_every_call(monkeypatch: pytest.MonkeyPatch):
    from diffusers.hooks.group_offloading import ModuleGroup

    pipeline = placed("cogvideox", BLOCKS)
    blocks = [block for _, block in family_by_name("cogvideox").blocks(pipeline.transformer)]
    fetched: list[int] = []
    fetch = ModuleGroup.onload_

    def seen(group: Any) -> None:
        fetched.extend(blocks.index(m) for m in group.modules if m in blocks)
        fetch(group)

    monkeypatch.setattr(ModuleGroup, "onload_", seen)
    denoise(pipeline, "a", GEN, seed=0, on_step=lambda step, latents: None)
    assert fetched == GEN.steps * list(range(len(blocks)))


def test_a_resident_block_is_not_moved_meanwhile_and_is_afterwards(
    monkeypatch: pytest.MonkeyPatch,
):
    from diffusers.hooks.group_offloading import ModuleGroup

    pipeline = placed("cogvideox", BLOCKS)
    _, block = family_by_name("cogvideox").blocks(pipeline.transformer)[0]
    hook = block._diffusers_hook.get_hook("group_offloading")
    fetched: list[Any] = []
    monkeypatch.setattr(ModuleGroup, "onload_", lambda group: fetched.append(group))
    monkeypatch.setattr(ModuleGroup, "offload_", lambda group: fetched.append(group))
    assert "hidden_states" in inspect.signature(block.forward).parameters
    with resident(block, CPU):
        assert not offloaded(block)
        streams = torch.zeros(1, 4, 32)
        block(hidden_states=streams, encoder_hidden_states=streams, temb=torch.zeros(1, 8))
        assert not fetched
    assert block._diffusers_hook.get_hook("group_offloading") is hook
    fetched.clear()
    denoiser_step(pipeline, GEN)()
    assert hook.group in fetched


def test_a_block_comes_back_also_after_an_error():
    pipeline = placed("cogvideox", BLOCKS)
    _, block = family_by_name("cogvideox").blocks(pipeline.transformer)[0]
    with pytest.raises(RuntimeError), resident(block, CPU):
        raise RuntimeError
    assert offloaded(block)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_calibration_is_the_same_bit_for_bit(method: str, tmp_path: Path):
    prompts = [Prompt(id=str(i), text=text) for i, text in enumerate(("a red circle", "a square"))]
    tables = []
    for offload in (NONE, BLOCKS):
        folder = tmp_path / offload
        folder.mkdir()
        pipeline = placed("cogvideox", offload)
        pool = record_pool(
            pipeline, prompts, GEN, seed=0, folder=folder, progress=lambda fraction, text: None
        )
        chosen = load_method(method)
        options = chosen.Options(samples=4, timesteps=2) if method == "gptq" else chosen.Options()
        ctx = QuantContext(
            bits=BitSpec.parse("w4a8"), options=options, family=family_by_name("cogvideox"),
            device=computing_device(pipeline), pool=pool, scratch=tmp_path,
        )  # fmt: skip
        chosen.quantize_(pipeline.transformer, ctx)
        tables.append(pipeline.transformer.state_dict())
        assert offloaded(pipeline.transformer) == (offload == BLOCKS)
        tables[-1]["clip"] = sample_clip(pipeline, "a", GEN, seed=0).latents
    exact, moved = tables
    assert exact.keys() == moved.keys()
    assert all(torch.equal(exact[name], moved[name]) for name in exact)
