"""Flow shift and negative prompt reach the sampler, or are refused where nothing reads them."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING

import diffusers
import pytest
import torch

from harness.errors import UsageError
from harness.models.load import load_pipeline
from harness.models.request import changed
from harness.models.sample import sample_clip
from harness.models.scheduler import (
    _BY_FLOW_SHIFT,
    _BY_SHIFT,
    set_flow_shift_,
    shift_parameter,
    shift_text,
)
from harness.models.table import model_spec
from harness.testing.miniatures import GENS, MINIATURES

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import DiffusionPipeline
    from torch import Tensor

    from harness.spec import GenSpec


def latents(pipeline: DiffusionPipeline, gen: GenSpec) -> Tensor:
    return sample_clip(pipeline, "a red circle moves", replace(gen, steps=2), seed=1).latents


def test_the_classes_have_the_parameter_that_they_are_said_to_have() -> None:
    flows = {"use_flow_sigmas": True}
    for names, config in ((_BY_SHIFT, {}), (_BY_FLOW_SHIFT, flows)):
        for name in names:
            parameter, why = shift_parameter(name, config)
            assert parameter in inspect.signature(getattr(diffusers, name)).parameters
            assert not why


@pytest.mark.parametrize(
    ("kind", "config", "why"),
    [
        ("DDIMScheduler", {}, "has none"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": False}, "for flows only"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "size of the clip"),
    ],
)
def test_a_scheduler_that_reads_no_shift_says_why(
    kind: str, config: dict[str, object], why: str
) -> None:
    assert shift_parameter(kind, config)[0] == ""
    assert shift_text(kind, config, None)[0] == "none"
    assert why in shift_text(kind, config, None)[1]


@pytest.mark.parametrize(("name", "parameter"), [("wan", "flow_shift"), ("hunyuanvideo", "shift")])
def test_a_shift_changes_what_is_sampled_as_one_in_the_config_does(
    name: str, parameter: str
) -> None:
    own, other = MINIATURES[name](), MINIATURES[name]()
    before = latents(own, GENS[name])
    asked = latents(own, replace(GENS[name], flow_shift=1.5))
    assert own.scheduler.config[parameter] == 1.5
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config, **{parameter: 1.5})
    assert torch.equal(asked, latents(other, GENS[name]))
    assert not torch.equal(asked, before)


def test_no_shift_leaves_the_scheduler_and_one_without_effect_is_refused() -> None:
    pipeline = MINIATURES["ltx"]()
    scheduler = pipeline.scheduler
    set_flow_shift_(pipeline, None)
    assert pipeline.scheduler is scheduler
    with pytest.raises(UsageError, match="flow_shift = 3 has no effect"):
        set_flow_shift_(pipeline, 3.0)


def test_a_model_is_loaded_with_the_shift_of_its_settings(tmp_path: Path) -> None:
    MINIATURES["wan"]().save_pretrained(tmp_path / "wan")
    spec = model_spec(str(tmp_path / "wan"))
    loaded = load_pipeline(
        replace(spec, gen=replace(spec.gen, flow_shift=5.0)), device="cpu", dtype="float32"
    )
    assert loaded.scheduler.config.flow_shift == 5.0


@pytest.mark.parametrize("name", [name for name in MINIATURES if name != "hunyuanvideo"])
def test_a_negative_prompt_is_what_the_other_branch_reads(name: str) -> None:
    pipeline, gen = MINIATURES[name](), GENS[name]
    plain = latents(pipeline, gen)
    assert not torch.equal(latents(pipeline, replace(gen, negative_prompt="a blue square")), plain)
    # the same text on both branches is no guidance
    same = latents(pipeline, replace(gen, negative_prompt="a red circle moves"))
    single = latents(pipeline, replace(gen, guidance=1.0))
    torch.testing.assert_close(same, single, rtol=1e-3, atol=1e-3)


def test_a_recommended_negative_prompt_goes_where_guidance_is_off_and_a_given_one_stays() -> None:
    own = replace(GENS["wan"], negative_prompt="blurry")
    assert changed(own, {"steps": 2}).negative_prompt == "blurry"
    assert changed(own, {"guidance": 1.0}).negative_prompt == ""
    assert changed(own, {"guidance": 1.0, "negative_prompt": "x"}).negative_prompt == "x"
    assert changed(own, {"negative_prompt": ""}).negative_prompt == ""
