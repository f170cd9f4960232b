"""The memory budget: peak of every stage of a run, on the device and in the host's memory.

Computed from configs and the headers of weight files, without torch. Each stage holds only the
components that it uses; ``offload`` says what of them is on the device at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.models.offload import BLOCKS, COMPONENTS, NONE
from harness.models.shape import DenoiserShape, denoiser_shape
from harness.plan import memory_facts as facts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.models.parts import Part
    from harness.spec import GenSpec

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LAYERS, HESSIANS, TRAINING = "layers", "second moments", "block training"
DENOISER = "denoiser training, at least"
KINDS = (LAYERS, HESSIANS, TRAINING, DENOISER)
"""What a method holds while it calibrates: one linear; second moments of a block's inputs; the
activations of a block and what its gradients need; the same through the whole denoiser."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """Most that a stage holds.

    Attributes:
        stage: ``encode text``, ``quantize (second moments)``, ``decode``, ...
        device: Bytes on the computing device.
        host: Bytes of the process in the host's memory; on a CPU run that is all of it.
    """

    stage: str
    device: int
    host: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What the peaks of a model are computed from.

    Attributes:
        family: Its family.
        gen: Generation settings.
        parts: Components with weights.
        shape: A denoiser call.
        single: Components that run in float32 whatever the others run in.
    """

    family: str
    gen: GenSpec
    parts: tuple[Part, ...]
    shape: DenoiserShape
    single: tuple[str, ...] = ()

    def bytes_of(self, part: Part) -> int:
        """Bytes of a component as it is loaded."""
        width = 4 if part.name in self.single else BYTES[self.gen.dtype]
        return part.parameters * width

    @property
    def text(self) -> list[Part]:
        """The text encoders."""
        return [part for part in self.parts if part.text]

    @property
    def denoisers(self) -> list[Part]:
        """The denoisers."""
        return [part for part in self.parts if part.denoiser]

    @property
    def decoder(self) -> Part:
        """The decoder."""
        return next(part for part in self.parts if part.name == "vae")


def sizes_of(
    family: str, gen: GenSpec, parts: Iterable[Part], single: tuple[str, ...] = ()
) -> Sizes | None:
    """Sizes of a model; None where no estimate can be made of its family or its decoder.

    Args:
        family: Its family.
        gen: Generation settings.
        parts: Components with weights.
        single: Components that run in float32.
    """
    held = tuple(parts)
    by_name = {part.name: part for part in held}
    denoiser, vae = by_name.get("transformer"), by_name.get("vae")
    if denoiser is None or vae is None or vae.kind not in facts.DECODERS:
        return None
    shape = denoiser_shape(family, denoiser.config, vae.config, gen)
    if shape is None:
        return None
    return Sizes(family=family, gen=gen, parts=held, shape=shape, single=single)


def peaks(
    sizes: Sizes,
    *,
    offload: str = NONE,
    kinds: Iterable[str] = (),
    w_bits: float | None = None,
    tiled: bool | None = None,
) -> tuple[Peak, ...]:
    """Peak of every stage on a device of its own memory.

    Args:
        sizes: The model.
        offload: What stays in the host's memory.
        kinds: What methods hold while they calibrate, of ``KINDS``.
        w_bits: Width of the simulated rows; None where there are none.
        tiled: Whether the decoder works tile by tile; None as the generation settings say.
    """
    step = activation_bytes(sizes)
    resident, fetched = _denoiser_bytes(sizes, offload)
    found = [
        _text(sizes, offload),
        Peak(stage="denoise", device=resident + step, host=fetched),
    ]
    if w_bits is not None:
        stored = _simulated_bytes(sizes, w_bits)
        on_device = stored if offload != BLOCKS else _outside(sizes) + _one(sizes, stored)
        host = stored if offload != NONE else 0
        found.append(
            Peak(
                stage="denoise, quantized",
                device=on_device + step + _rounding_extra(sizes),
                host=host + facts.PROCESS_BYTES,
            )
        )
    for kind in KINDS:
        if kind in kinds:
            held = resident + calibration_bytes(sizes, kind)
            found.append(Peak(stage=f"quantize ({kind})", device=held, host=fetched))
    tiles = bool(getattr(sizes.gen, "vae_tiling", False)) if tiled is None else tiled
    return (*found, _decode(sizes, tiled=tiles))


def on_host(found: Iterable[Peak], workers: int = 1) -> tuple[Peak, ...]:
    """The same where the device is the processor: all is the host's, once for each worker."""
    return tuple(
        Peak(
            stage=peak.stage,
            device=workers * (peak.device + facts.PROCESS_BYTES),
            host=workers * (peak.device + facts.PROCESS_BYTES),
        )
        for peak in found
    )


def activation_bytes(sizes: Sizes) -> int:
    """Bytes that one denoiser call holds besides its weights, all its guidance branches."""
    return int(sizes.shape.rows * block_bytes(sizes, sizes.shape.tokens)) + _latents(sizes)


def block_bytes(sizes: Sizes, tokens: int) -> float:
    """Bytes that a block holds at its peak besides its weights, one row."""
    shape, width = sizes.shape, BYTES[sizes.gen.dtype]
    table = facts.HALF if width == 2 else facts.SINGLE
    held = table[sizes.family]
    values = held.values(shape.hidden / shape.width, rotary=shape.rotary)
    unit = tokens * shape.width * width
    return max(values * unit, held.masked * unit + held.mask_bytes(tokens, width))


def calibration_bytes(sizes: Sizes, kind: str) -> int:
    """Bytes that calibrating one block holds besides the denoiser.

    Args:
        sizes: The model.
        kind: One of ``KINDS``. Training through the denoiser is counted with a copy of it in
            float32, the input of every block, and one block at a time as a block is trained, whose
            linears keep less than other trainable layers do: a lower bound.
    """
    shape = sizes.shape
    largest = 4 * shape.width * shape.hidden
    rounding = facts.ROUNDING_COPIES * largest
    if kind == LAYERS:
        return rounding
    moments = facts.HESSIAN_BYTES * sum(width**2 for width in shape.inputs)
    # one sample of one branch and its target, read from disk
    sample = 2 * shape.tokens * shape.width * BYTES[sizes.gen.dtype]
    passing = int(block_bytes(sizes, shape.tokens)) + sample
    if kind == HESSIANS:
        return max(moments + passing, moments + rounding)
    step = facts.TRAINED_VALUES * 4 * shape.tokens * shape.width
    step += facts.SINGLE[sizes.family].mask_bytes(shape.tokens, 4)
    fixed = facts.TRAINED_WEIGHTS * 4 * shape.block_weights
    if kind == DENOISER:
        copied = 4 * max(part.parameters for part in sizes.denoisers)
        inputs = 4 * shape.blocks * shape.tokens * shape.width
        return int(copied + inputs + step + 2 * sample)
    return int(max(step + fixed + 2 * sample, moments + passing, moments + rounding))


def decoding_bytes(sizes: Sizes, *, tiled: bool) -> int:
    """Bytes that decoding a clip holds besides the decoder's weights."""
    gen, part = sizes.gen, sizes.decoder
    known = facts.DECODERS[part.kind]
    key, index = known.config
    given = part.config.get(key, known.width)
    width = int(given if index < 0 or isinstance(given, int) else given[index])
    values = known.values(gen.height * gen.width, gen.frames, width, tiled=tiled)
    return int(values * (4 if part.name in sizes.single else BYTES[gen.dtype]))


def _text(sizes: Sizes, offload: str) -> Peak:
    """Text encoders: all, the largest, or its largest layer, which is the embedding of words."""
    every = [sizes.bytes_of(part) for part in sizes.text]
    width = BYTES[sizes.gen.dtype]
    held, host = sum(every), 0
    if offload != NONE:
        held, host = max(every, default=0), sum(every)
    if offload == BLOCKS:
        held = max((width * _embedding(part) for part in sizes.text), default=0)
    return Peak(stage="encode text", device=held, host=host + facts.PROCESS_BYTES)


def _embedding(part: Part) -> int:
    config = part.config
    config = config.get("text_config", config)
    width = config.get("d_model") or config.get("hidden_size")
    if not width or not config.get("vocab_size"):
        return part.parameters  # of unknown make: taken to be on the device as a whole
    return int(width * config["vocab_size"])


def _denoiser_bytes(sizes: Sizes, offload: str) -> tuple[int, int]:
    """Denoiser weights on the device, and the process with what the host keeps of them."""
    every = [sizes.bytes_of(part) for part in sizes.denoisers]
    if offload == NONE:
        return sum(every), facts.PROCESS_BYTES
    if offload == COMPONENTS:
        return max(every), facts.PROCESS_BYTES + sum(every)
    block = sizes.shape.block_weights * BYTES[sizes.gen.dtype]
    return _outside(sizes) + block, facts.PROCESS_BYTES + sum(every)


def _outside(sizes: Sizes) -> int:
    """Bytes of a denoiser that are in no block."""
    inside = sizes.shape.all_block_weights * BYTES[sizes.gen.dtype]
    return max(0, sizes.bytes_of(sizes.denoisers[0]) - inside)


def _one(sizes: Sizes, every: int) -> int:
    """The largest block's share of all blocks' bytes."""
    return int(every * sizes.shape.block_weights / sizes.shape.all_block_weights)


def _simulated_bytes(sizes: Sizes, w_bits: float) -> int:
    """Weights of a simulated row: blocks as they are kept, the rest as loaded."""
    bits = w_bits + facts.SIMULATED_OVERHEAD_BITS
    blocks = len(sizes.denoisers) * sizes.shape.all_block_weights * bits / 8
    return int(blocks) + len(sizes.denoisers) * _outside(sizes)


def _rounding_extra(sizes: Sizes) -> int:
    """Rounding a linear's input, and expanding one weight."""
    shape, width = sizes.shape, BYTES[sizes.gen.dtype]
    rows = shape.rows * shape.tokens * shape.hidden * width
    expanded = width * shape.width * shape.hidden
    return int(facts.SIMULATED_INPUT * rows) + expanded + facts.SIMULATED_WORK


def _latents(sizes: Sizes) -> int:
    """Latents, noise predictions of both branches and the scheduler's copies, in float32."""
    return 8 * 4 * sizes.shape.latent


def _decode(sizes: Sizes, *, tiled: bool) -> Peak:
    part = sizes.decoder
    clip = 4 * 3 * sizes.gen.frames * sizes.gen.height * sizes.gen.width
    return Peak(
        stage="decode, tiled" if tiled else "decode",
        device=sizes.bytes_of(part) + decoding_bytes(sizes, tiled=tiled),
        host=facts.PROCESS_BYTES + 2 * clip,  # frames as floats and as they are written
    )
