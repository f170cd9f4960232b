"""The size of a denoiser's weights at the usual widths, as a section of the model's sheet.

Beside them stands what a paper printed of the same model, for which no number here was fitted: the
accounting is that of the artifacts, and the difference is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.bits import IDENTITY_WIDTH
from harness.errors import HarnessError
from harness.models.description import DENOISER, SECOND_DENOISER, component_weights
from harness.models.inventory import inventory
from harness.models.table import files_of, open_model
from harness.plan.model_sheet import Section
from harness.plan.stage_time import UNKNOWN
from harness.plan.storage import Scheme, storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.models.inventory import Inventory
    from harness.spec import ModelSpec

TITLE = "size of the denoiser's weights, counted from its config"
GIB = 2**30
WIDTHS, GROUPS = (8, 6, 4), (0, 64, 128)

DEFINITION = (
    ("GiB", "", "2^30 bytes of weights, text encoders and VAE left out; MiB: 2^20"),
    ("rounded", "", "every linear of the blocks, modulation too; symmetric grids, float16 steps"),
    ("kept", "", "all else, biases too: 16 bits, at most 32 where file and model hold float32"),
    ("not counted", "", "headers of files and manifest; transforms and branches of a method;"),
    ("", "", "the other half of a linear's steps where one is below 2^-14 (a row of zeros)"),
)  # fmt: skip
"""What the numbers of the section mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedSize:
    """Storage of a model as a paper prints it.

    Attributes:
        source: Paper and table.
        plain: Of the 16-bit model, in GiB. The paper writes GB; only 2^30 bytes give the parameters
            of the published checkpoints.
        bits: Width of the quantized model's weights.
        quantized: Of the quantized model, in GiB.
    """

    source: str
    plain: float
    bits: int
    quantized: float


_S2Q = "S2Q-VDiT (arXiv 2508.04016), table 5"
PUBLISHED = {
    "CogVideoX-5B": PublishedSize(source=_S2Q, plain=10.375, bits=4, quantized=2.633),
    "HunyuanVideo": PublishedSize(source=_S2Q, plain=23.881, bits=4, quantized=6.494),
}
"""By the name under which ``harness.models.settings`` knows the model."""


def size_section(spec: ModelSpec) -> Section:
    """Bytes of a model's denoiser at 16 bits and at the usual widths.

    A config that cannot be counted is said in the section.

    Args:
        spec: The model.

    Raises:
        HarnessError: Its files cannot be read.
    """
    files = files_of(spec)
    description, settled = open_model(files, spec.name)
    denoisers = [name for name in (DENOISER, SECOND_DENOISER) if name in description.components]
    try:
        found = inventory(
            description.components[DENOISER].kind,
            *(description.config(name) for name in denoisers),
            dtype=spec.gen.dtype,
            stored=description.stored,
        )
    except HarnessError as cause:
        return Section(title=TITLE, rows=(("every width", UNKNOWN, cause.message),))
    held = sum(component_weights(files, description, name).count for name in denoisers)
    rows = [*_widths(found, held), *_published(found, settled.model), *DEFINITION]
    return Section(title=TITLE, rows=tuple(rows))


def size_text(count: int) -> str:
    """Bytes in words: GiB, below a tenth of it MiB."""
    return f"{count / GIB:.3f} GiB" if count >= GIB / 10 else f"{count / 2**20:.3f} MiB"


def away(count: int, gib: float) -> float:
    """How far bytes are from a number of GiB, in per cent of it, to two digits."""
    return round(100 * (count / GIB / gib - 1), 2) + 0.0  # no -0.00


def _widths(found: Inventory, held: int) -> Iterator[tuple[str, str, str]]:
    """The widths, after what the config and the weight files make of the whole."""
    other = f", the weight files hold {held:,}" if held != found.values else ""
    whole = storage(found, Scheme(bits=IDENTITY_WIDTH)).plain
    yield "16 bits", size_text(whole), f"{found.values:,} parameters{other}"
    for group in GROUPS:
        for bits in WIDTHS:
            scheme = Scheme(bits=bits, group=group)
            name = scheme.label if group else f"{scheme.label} per channel"
            try:
                size = storage(found, scheme)
            except HarnessError as cause:
                yield name, "none", cause.message
                continue
            yield (
                name,
                f"{size_text(size.total)}, {size.ratio:.2f}x",
                f"codes {size_text(size.codes)}, steps {size_text(size.steps)}, "
                f"kept {size_text(size.kept)}",
            )


def _published(found: Inventory, model: str) -> Iterator[tuple[str, str, str]]:
    """What a paper printed, and how far the numbers above are from it."""
    known = PUBLISHED.get(model)
    if known is None:
        return
    size = storage(found, Scheme(bits=known.bits))
    pairs = (("16 bits", known.plain, size.plain), (f"w{known.bits}", known.quantized, size.total))
    for name, theirs, ours in pairs:
        yield (
            f"published, {name}",
            f"{theirs:.3f} GiB",
            f"here {ours / GIB:.3f}, {away(ours, theirs):+.2f} %; {known.source}",
        )
    yield (
        "published, ratio",
        f"{known.plain / known.quantized:.2f}x",
        f"here {size.ratio:.2f}x; the paper does not say which linears it rounds",
    )
