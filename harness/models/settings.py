"""What a model is normally run with, and where each number comes from: one table, one function.

A row is found by the class of the pipeline and by facts of the configs, never by a name: the same
weights have the same settings as a short name, a hub id, a folder or a loaded pipeline. The first
row that fits counts; the last of each class has no facts and takes what the configs say. Sources
are named as they are looked up: a page, a script, a docstring of diffusers 0.42.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models import shapes
from harness.models.geometry import factors
from harness.spec import GenSpec

if TYPE_CHECKING:
    from harness.models.description import Description

OWN = "as it is stored"
SCHEDULER = "the scheduler's own"

_Value = Any | Callable[["Description"], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What is known of a model, or of all others of a class of pipelines.

    Attributes:
        pipeline: Class of the pipeline.
        model: What it is called; empty for the others of the class.
        facts: Values of configs that tell it from others, by ``component.key``.
        values: Settings, or functions of the description, by name in ``GenSpec``; each with its
            source.
        dtypes: Type to run in by the type that most weights are stored in, where they differ.
        dtype_source: Who says so.
        shifts: Flow shift to sample with by the one in the scheduler's config: what a converter
            wrote for all sizes is replaced, what somebody else chose stays.
        shift_source: Who says so.
    """

    pipeline: str
    model: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, tuple[_Value, str]]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    dtype_source: str = ""
    shifts: Mapping[float, float] = field(default_factory=dict)
    shift_source: str = ""

    def fits(self, description: Description) -> bool:
        """Whether a pipeline is this model."""
        return description.pipeline == self.pipeline and all(
            description.fact(path) == value for path, value in self.facts.items()
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """Settings of one model.

    Attributes:
        gen: The settings.
        sources: Where each comes from, by name in ``GenSpec``.
        model: Which model of the table it is; empty where none fits.
    """

    gen: GenSpec
    sources: Mapping[str, str]
    model: str


def _said(source: str, **values: _Value) -> dict[str, tuple[_Value, str]]:
    return {name: (value, source) for name, value in values.items()}


def _pixels(key: str, default: int) -> Callable[[Description], int]:
    def found(description: Description) -> int:
        return description.number(f"transformer.{key}", default) * factors(description).spatial

    return found


def _number(path: str, default: int) -> Callable[[Description], int]:
    return lambda description: description.number(path, default)


_COG = {
    **_said(
        "transformer/config.json, sample_height and sample_width times the VAE's factor",
        height=_pixels("sample_height", 60), width=_pixels("sample_width", 90),
    ),
    **_said(
        "transformer/config.json, sample_frames", frames=_number("transformer.sample_frames", 49)
    ),
    **_said("example of diffusers' CogVideoXPipeline", fps=8),
    **_said("diffusers' CogVideoXPipeline.__call__", steps=50, guidance=6.0),
    **_said(
        "transformer/config.json, max_text_seq_length",
        max_text_tokens=_number("transformer.max_text_seq_length", 226),
    ),
}  # fmt: skip
_COG_CARD = "model card of zai-org/CogVideoX1.5-5B, table of all variants"
_SHAPES = "harness/models/shapes, as it was trained"

_HUNYUAN_CALL = "diffusers' HunyuanVideoPipeline.__call__"
_HUNYUAN = {
    **_said(_HUNYUAN_CALL, height=720, width=1280, frames=129, steps=50, guidance=6.0),
    **_said(_HUNYUAN_CALL, max_text_tokens=256),
    **_said("Tencent/HunyuanVideo, sample_video.py", fps=24),
}

_HUNYUAN15 = {
    **_said(
        "Tencent-Hunyuan/HunyuanVideo-1.5, README.md, table of configurations",
        steps=50, guidance=6.0,
    ),
    **_said(
        "Tencent-Hunyuan/HunyuanVideo-1.5, README.md, example with diffusers", frames=121, fps=24
    ),
    **_said("HunyuanVideo15Pipeline of diffusers, tokenizer_max_length", max_text_tokens=1000),
    **_said(
        "what HunyuanVideo15Pipeline chooses for a target_size of 640", height=480, width=848
    ),
}  # fmt: skip
_HUNYUAN15_EXAMPLE = "Tencent-Hunyuan/HunyuanVideo-1.5, README.md, example with diffusers"

_WAN_CALL = "diffusers' WanPipeline.__call__"
_WAN_EXAMPLE = "example of diffusers' WanPipeline"
_WAN = {
    **_said(_WAN_CALL, height=480, width=832, frames=81, steps=50, guidance=5.0),
    **_said(_WAN_CALL, max_text_tokens=512),
    **_said(_WAN_EXAMPLE, fps=16),
}
_WAN_NEGATIVE = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, "
    "images, static, overall gray, worst quality, low quality, JPEG compression residue, ugly, "
    "incomplete, extra fingers, poorly drawn hands, poorly drawn faces, deformed, disfigured, "
    "misshapen limbs, fused fingers, still picture, messy background, three legs, many people in "
    "the background, walking backwards"
)
_WAN_KNOWN = {**_WAN, **_said(_WAN_EXAMPLE, negative_prompt=_WAN_NEGATIVE)}
_WAN_A14B = "Wan-Video/Wan2.2, wan/configs/wan_t2v_A14B.py"
_WAN_5B = "Wan-Video/Wan2.2, wan/configs/wan_ti2v_5B.py"
_WAN_SHIFT = f"{_WAN_EXAMPLE}: 5.0 for 720p, 3.0 for 480p"

_LTX_CALL = "diffusers' LTXPipeline.__call__"
_LTX = {
    **_said(_LTX_CALL, height=512, width=704, frames=161, fps=25, steps=50, guidance=3.0),
    **_said(_LTX_CALL, max_text_tokens=128),
}

_LATTE = {
    **_said(
        "transformer/config.json, sample_size times the VAE's factor",
        height=_pixels("sample_size", 64), width=_pixels("sample_size", 64),
    ),
    **_said(
        "transformer/config.json, video_length", frames=_number("transformer.video_length", 16)
    ),
    **_said("diffusers' LattePipeline.__call__", steps=50, guidance=7.5),
    **_said("diffusers' LattePipeline.encode_prompt, fixed there", max_text_tokens=120),
    **_said("Vchitect/Latte, sample/sample_t2x.py", fps=8),
}  # fmt: skip

_TO_BFLOAT16 = {"float32": "bfloat16"}

TABLE = (
    Row(
        pipeline="CogVideoXPipeline", model="shapes",
        facts={
            "transformer.num_layers": 6, "transformer.num_attention_heads": 4,
            "transformer.in_channels": 8, "transformer.max_text_seq_length": shapes.MAX_TEXT_TOKENS,
        },
        values=_said(
            _SHAPES, height=shapes.HEIGHT, width=shapes.WIDTH, frames=shapes.FRAMES,
            fps=shapes.FPS, steps=shapes.STEPS, guidance=shapes.GUIDANCE,
            max_text_tokens=shapes.MAX_TEXT_TOKENS,
        ),
        dtypes={"float16": "float32"}, dtype_source=_SHAPES,
    ),
    # the config's 300 rows and columns are room for other sizes, not the size it is sampled at
    Row(
        pipeline="CogVideoXPipeline", model="CogVideoX1.5-5B",
        facts={"transformer.num_layers": 42, "transformer.patch_size_t": 2},
        values={**_COG, **_said(_COG_CARD, height=768, width=1360, frames=81, fps=16)},
        dtypes=_TO_BFLOAT16, dtype_source=_COG_CARD,
    ),
    Row(
        pipeline="CogVideoXPipeline", model="CogVideoX-5B",
        facts={"transformer.num_layers": 42, "transformer.num_attention_heads": 48},
        values=_COG, dtypes=_TO_BFLOAT16, dtype_source=_COG_CARD,
    ),
    # its first model card ruled bfloat16 out
    Row(
        pipeline="CogVideoXPipeline", model="CogVideoX-2B",
        facts={"transformer.num_layers": 30, "transformer.num_attention_heads": 30},
        values=_COG, dtypes={"float32": "float16"}, dtype_source=_COG_CARD,
    ),
    Row(pipeline="CogVideoXPipeline", values=_COG),
    Row(
        pipeline="HunyuanVideoPipeline", model="HunyuanVideo",
        facts={"transformer.num_layers": 20, "transformer.num_single_layers": 40},
        values=_HUNYUAN, dtypes=_TO_BFLOAT16,
        dtype_source="example of diffusers' HunyuanVideoPipeline",
    ),
    Row(pipeline="HunyuanVideoPipeline", values=_HUNYUAN),
    Row(
        pipeline="HunyuanVideo15Pipeline", model="HunyuanVideo-1.5 720p",
        facts={"transformer.num_layers": 54, "transformer.target_size": 960},
        values={
            **_HUNYUAN15,
            **_said(
                "what HunyuanVideo15Pipeline chooses for a target_size of 960",
                height=720, width=1280,
            ),
        },
        dtypes=_TO_BFLOAT16, dtype_source=_HUNYUAN15_EXAMPLE,
    ),
    Row(
        pipeline="HunyuanVideo15Pipeline", model="HunyuanVideo-1.5 480p",
        facts={"transformer.num_layers": 54},
        values=_HUNYUAN15, dtypes=_TO_BFLOAT16, dtype_source=_HUNYUAN15_EXAMPLE,
    ),
    Row(pipeline="HunyuanVideo15Pipeline", values=_HUNYUAN15),
    Row(
        pipeline="WanPipeline", model="Wan2.2-TI2V-5B",
        facts={
            "transformer.in_channels": 48, "vae.z_dim": 48, "transformer.num_attention_heads": 24,
        },
        values={
            **_WAN_KNOWN,
            **_said(_WAN_5B, frames=121, fps=24, steps=50, guidance=5.0),
            **_said("Wan-Video/Wan2.2, README.md, --size 1280*704", height=704, width=1280),
        },
        dtypes=_TO_BFLOAT16, dtype_source=_WAN_EXAMPLE,
        shifts={3.0: 5.0}, shift_source=_WAN_5B,
    ),
    Row(
        pipeline="WanPipeline", model="Wan2.2-T2V-A14B",
        facts={
            "transformer.in_channels": 16, "transformer.num_layers": 40,
            "transformer.num_attention_heads": 40, "transformer_2.num_layers": 40,
        },
        values={
            **_WAN_KNOWN,
            **_said(_WAN_A14B, steps=40, guidance=4.0, guidance_2=3.0),
            **_said("Wan-Video/Wan2.2, wan/configs/shared_config.py", frames=81, fps=16),
            **_said("Wan-Video/Wan2.2, README.md, --size 1280*720", height=720, width=1280),
        },
        dtypes=_TO_BFLOAT16, dtype_source=_WAN_EXAMPLE,
        shifts={3.0: 12.0, 5.0: 12.0}, shift_source=_WAN_A14B,
    ),
    Row(
        pipeline="WanPipeline", model="Wan2.1-T2V-14B",
        facts={
            "transformer.in_channels": 16, "transformer.num_layers": 40,
            "transformer.num_attention_heads": 40,
        },
        values={**_WAN_KNOWN, **_said(_WAN_EXAMPLE, height=720, width=1280, frames=81)},
        dtypes=_TO_BFLOAT16, dtype_source=_WAN_EXAMPLE,
        shifts={3.0: 5.0}, shift_source=_WAN_SHIFT,
    ),
    Row(
        pipeline="WanPipeline", model="Wan2.1-T2V-1.3B",
        facts={
            "transformer.in_channels": 16, "transformer.num_layers": 30,
            "transformer.num_attention_heads": 12,
        },
        values=_WAN_KNOWN, dtypes=_TO_BFLOAT16, dtype_source=_WAN_EXAMPLE,
        shifts={5.0: 3.0}, shift_source=_WAN_SHIFT,
    ),
    Row(pipeline="WanPipeline", values=_WAN),
    Row(
        pipeline="LTXPipeline", model="LTX-Video",
        facts={"transformer.num_layers": 28, "transformer.num_attention_heads": 32},
        values={
            **_LTX,
            **_said(
                "example of diffusers' LTXPipeline",
                negative_prompt="worst quality, inconsistent motion, blurry, jittery, distorted",
            ),
        },
        dtypes=_TO_BFLOAT16, dtype_source="example of diffusers' LTXPipeline",
    ),
    Row(pipeline="LTXPipeline", values=_LTX),
    Row(
        pipeline="LattePipeline", model="Latte-1",
        facts={"transformer.num_layers": 28, "transformer.num_attention_heads": 16},
        values=_LATTE, dtypes={"float32": "float16"},
        dtype_source="example of diffusers' LattePipeline",
    ),
    Row(pipeline="LattePipeline", values=_LATTE),
)  # fmt: skip


def settle(description: Description) -> Settled:
    """Decide what a model is run with where nobody says otherwise.

    Args:
        description: The pipeline, with the type that its denoiser is stored in.

    Raises:
        HarnessError: The class of the pipeline stands in no row, or a config cannot be meant.
    """
    row = next((row for row in TABLE if row.fits(description)), None)
    if row is None:
        known = ", ".join(dict.fromkeys(row.pipeline for row in TABLE))
        raise HarnessError(
            f"no settings are known for pipelines of class '{description.pipeline}'",
            f"known: {known}",
        )
    values = {
        name: (value(description) if callable(value) else value)
        for name, (value, _) in row.values.items()
    }
    sources = {name: source for name, (_, source) in row.values.items()}
    stored = "float32" if description.stored in ("", "float64") else description.stored
    values["dtype"] = row.dtypes.get(stored, stored)
    sources["dtype"] = row.dtype_source if values["dtype"] != stored else OWN
    shift = description.fact("scheduler.flow_shift")
    sources["flow_shift"] = SCHEDULER
    if isinstance(shift, (int, float)) and shift in row.shifts:
        values["flow_shift"] = row.shifts[shift]
        sources["flow_shift"] = row.shift_source
    sources.setdefault("negative_prompt", "none is recommended")
    sources.setdefault("guidance_2", "that of the first denoiser")
    sources["vae_tiling"] = "by the size of the clip, harness/models/tiling.py"
    return Settled(gen=GenSpec(**values), sources=sources, model=row.model)
