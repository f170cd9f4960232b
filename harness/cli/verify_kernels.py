"""``harness verify --kernels``: one clip by kernels and by simulation, from the same noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn

    from harness.cli.targets import Target
    from harness.models.text import Conditioning
    from harness.spec import GenSpec, ModelSpec

_LATENT = "hidden_states"  # how every denoiser calls its latents
_PROMPT = "a red circle moving right on a white background"
_SEED = 0


class Agreement(NamedTuple):
    """How far a clip by kernels is from the simulated one.

    Attributes:
        label: ``kernel:<name>``; ``simulated`` where no kernel takes the row.
        by_kernel: PSNR in dB and relative squared error of the final latents; None where nothing
            was sampled.
        by_noise: The same of the simulation whose inputs are off by one unit in the last place, at
            random: a code at the edge of two levels tips, and tips others behind it, so no two
            computations of a rounded denoiser agree better than this.
        reasons: Why no kernel takes it.
    """

    label: str
    by_kernel: tuple[float, float] | None = None
    by_noise: tuple[float, float] | None = None
    reasons: tuple[str, ...] = ()


def agreement(target: Target, *, setting: str, device: str) -> Agreement:
    """Sample one clip of an artifact in both ways.

    Args:
        target: The artifact; its model is known.
        setting: ``auto`` or the name of a kernel.
        device: Where both are computed.

    Raises:
        UsageError: The setting names no kernel.
        HarnessError: Model or artifact cannot be opened.
    """
    from harness.generate.networks import open_decoder, open_denoiser
    from harness.kernels.dispatch import execution_of
    from harness.kernels.registry import OFF
    from harness.models.sample import decode, denoise
    from harness.models.table import model_spec
    from harness.score.fidelity import fidelity
    from harness.spec import KERNEL

    spec = model_spec(target.model)
    gen = target.gen(spec)
    conditioning = _encoded(spec, gen, device)
    latents, label = [], ""
    for kernels, noisy in ((setting, False), (OFF, False), (OFF, True)):
        pipeline = open_denoiser(spec, gen, device, target.folder, kernels=kernels)
        execution = execution_of(pipeline.transformer)
        if kernels != OFF and not execution.label.startswith(KERNEL):
            return Agreement(execution.label, reasons=tuple(execution.reasons))
        label = label or execution.label
        if noisy:
            pipeline.transformer.register_forward_pre_hook(_nudge, with_kwargs=True)
        latents.append(denoise(pipeline, conditioning, gen, seed=_SEED).cpu().float())
        del pipeline
    decoder = open_decoder(spec, gen, device)
    frames = [decode(decoder, z, conditioning, gen, seed=_SEED) for z in latents]

    def compared(i: int) -> tuple[float, float]:
        found = fidelity(frames[i], frames[1], latents[i], latents[1])
        return found["psnr_db"], found["latent_error"]

    return Agreement(label, compared(0), compared(2))


def _nudge(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Move the latents of a call by one unit in the last place, up or down."""
    import torch

    given = named[_LATENT]
    signs = torch.randint(2, given.shape, device=given.device, dtype=given.dtype) * 2 - 1
    moved = given * (1 + signs * torch.finfo(given.dtype).eps)
    return arguments, {**named, _LATENT: moved}


def _encoded(spec: ModelSpec, gen: GenSpec, device: str) -> Conditioning:
    from harness.models.load import load_pipeline
    from harness.models.text import encode_text

    pipeline = load_pipeline(spec, device=device, dtype=gen.dtype, parts={"text"})
    return encode_text(pipeline, _PROMPT, gen)


def text(found: Agreement) -> list[str]:
    """What was found, as lines to print."""
    if found.by_kernel is None or found.by_noise is None:
        why = "; ".join(found.reasons) or "no linear of it is rounded here"
        return [f"no kernel computes it: {why}"]
    rows = {
        f"by {found.label}": found.by_kernel,
        "by simulation, its inputs off by one unit in the last place": found.by_noise,
    }
    return [
        "one clip from the same noise, against the simulated one",
        *(f"  {how}: PSNR {psnr:.2f} dB, latent error {e:.2e}" for how, (psnr, e) in rows.items()),
    ]
