"""Which pipelines are taken: text-to-video of a supported family, in full precision.

All that is refused here is refused from small files, before weights are downloaded or a worker is
started.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models.description import DENOISER, SECOND_DENOISER, quantized_storage
from harness.models.families import family_name_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.models.description import Description
    from harness.models.weights import Weights

PIPELINES = {
    "CogVideoXPipeline": "cogvideox",
    "HunyuanVideo15Pipeline": "hunyuanvideo15",
    "HunyuanVideoPipeline": "hunyuanvideo",
    "LTXPipeline": "ltx",
    "LattePipeline": "latte",
    "WanPipeline": "wan",
}
"""The text-to-video pipelines of diffusers that are sampled, with their families."""

INSTEAD = {
    "cogvideox": "cogvideox-2b, cogvideox-5b",
    "hunyuanvideo": "hunyuanvideo",
    "hunyuanvideo15": "hunyuanvideo-1.5-480p, hunyuanvideo-1.5-720p",
    "latte": "latte",
    "ltx": "ltx-video",
    "wan": "wan2.1-1.3b, wan2.1-14b, wan2.2-ti2v-5b, wan2.2-a14b",
}
"""Short names of the models of a family that are sampled from text."""

EXPERT_CLASS = "WanTransformer3DModel"
"""Of denoisers that take turns."""

_WANTS = {
    "ImageToVideo": "an image",
    "Image2Video": "an image",
    "I2V": "an image",
    "VideoToVideo": "a video",
    "Video2Video": "a video",
    "Control": "a control video",
    "VACE": "a control video",
    "Animate": "a video and an image",
    "Condition": "images or videos",
    "Inpaint": "a video and a mask",
    "Upsample": "a clip to enlarge",
    "Framepack": "an image",
}
"""What a pipeline whose class has the word in its name is called with, besides text."""

_LATENT_CHANNELS = {
    "cogvideox": ("vae.latent_channels", 16),
    "hunyuanvideo": ("vae.latent_channels", 16),
    "hunyuanvideo15": ("vae.latent_channels", 32),
    "latte": ("vae.latent_channels", 4),
    "ltx": ("vae.latent_channels", 128),
    "wan": ("vae.z_dim", 16),
}
"""Where a VAE's config says how many channels a latent has, and the default of its class."""


def admit(description: Description) -> str:
    """Name the family of a pipeline that can be sampled from text and quantized.

    Raises:
        HarnessError: It is no such pipeline; says which is.
    """
    name = description.name
    if DENOISER not in description.components:
        raise HarnessError(
            f"model '{name}' is a {description.pipeline} without a '{DENOISER}'",
            "give a text-to-video pipeline of a diffusion transformer: see `harness list models`",
        )
    family = family_name_of(description.components[DENOISER].kind)
    if PIPELINES.get(description.pipeline) != family:
        raise _other_pipeline(description, family)
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        if part not in description.components:
            raise HarnessError(
                f"model '{name}' has no '{part}': its index leaves it out",
                "download the whole pipeline; to sample, a text-to-video model needs it",
            )
    refuse_quantized(description)
    if SECOND_DENOISER in description.components:
        both = [description.components[part] for part in (DENOISER, SECOND_DENOISER)]
        check_experts(name, [p.kind for p in both], description.boundary, [p.config for p in both])
    path, default = _LATENT_CHANNELS[family]
    latent, read = description.number(path, default), description.fact("transformer.in_channels")
    # its input is the latent, a condition of as many channels, and the condition's mask
    wanted = 2 * latent + 1 if family == "hunyuanvideo15" else latent
    if read is not None and read != wanted:
        raise HarnessError(
            f"the denoiser of model '{name}' reads {read} channels and its VAE has {latent}: "
            "it is conditioned on more than text",
            f"give a text-to-video model: {INSTEAD[family]}",
        )
    if family == "hunyuanvideo" and description.fact("transformer.guidance_embeds") is False:
        raise HarnessError(
            f"the denoiser of model '{name}' takes no guidance scale (guidance_embeds is false): "
            "two guidance branches of this family are not run",
            f"give a distilled model: {INSTEAD[family]}",
        )
    return family


def check_experts(
    name: str, kinds: Sequence[str], ratio: Any, configs: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse two denoisers that cannot be run as one.

    Args:
        name: What the user knows the pipeline by.
        kinds: Their classes.
        ratio: Where one takes over, as a share of the timesteps; None where nothing says it.
        configs: Their configs.

    Raises:
        HarnessError: They are not of the class of Wan, nothing says when each serves,
            or they differ.
    """
    if not set(kinds) <= {EXPERT_CLASS, "WanExperts"}:
        raise HarnessError(
            f"'{name}' has two denoisers, of class {' and '.join(dict.fromkeys(kinds))}: only the "
            f"experts of Wan 2.2 ({EXPERT_CLASS}) are run",
            "give a model with one denoiser: see `harness list models`",
        )
    if not isinstance(ratio, float) or not 0 < ratio < 1:
        raise HarnessError(
            f"'{name}' has two denoisers and boundary_ratio {ratio}, which is no number between 0 "
            "and 1: nothing says when each serves",
            f"give the pipeline with its boundary_ratio, or with {SECOND_DENOISER} = None",
        )
    first, second = ({k: v for k, v in c.items() if not k.startswith("_")} for c in configs)
    if first != second:
        differing = sorted(k for k in first.keys() | second.keys() if first.get(k) != second.get(k))
        raise HarnessError(
            f"the two denoisers of '{name}' are not of one architecture: {differing[:3]} differ",
            "give a pipeline whose experts have the same config",
        )


def refuse_quantized(description: Description) -> None:
    """Refuse a pipeline of which a component was saved quantized: its fp row would not be fp.

    Raises:
        HarnessError: A config says so.
    """
    for part, component in description.components.items():
        found = component.config.get("quantization_config")
        if not found:
            continue
        method = found.get("quant_method") if isinstance(found, dict) else None
        raise HarnessError(
            f"'{part}' of model '{description.name}' is quantized already "
            f"({method or 'quantization_config'} in its config)",
            "give the model in full precision: rows are compared with it",
        )


def refuse_quantized_storage(description: Description, part: str, weights: Weights) -> None:
    """Refuse weights that are kept in a type that nothing is computed in.

    Raises:
        HarnessError: Most of them are.
    """
    if kind := quantized_storage(weights):
        raise HarnessError(
            f"'{part}' of model '{description.name}' is quantized already: most of its weights are "
            f"stored as {kind}",
            "give the model in full precision: rows are compared with it",
        )


def _other_pipeline(description: Description, family: str) -> HarnessError:
    kind = description.pipeline
    wants = next((what for word, what in _WANTS.items() if word in kind), "")
    why = f"it is called with {wants}" if wants else "it is no text-to-video pipeline known here"
    expected = next(name for name, of in PIPELINES.items() if of == family)
    return HarnessError(
        f"model '{description.name}' is a {kind}: {why}",
        f"give a text-to-video model ({expected}): {INSTEAD[family]}, or a folder of one",
    )
