"""Bit widths as the field writes them: ``w4a6`` is 4-bit weights and 6-bit activations."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.errors import UsageError

INTEGER_WIDTHS = (2, 3, 4, 5, 6, 7, 8)
IDENTITY_WIDTH = 16
_PATTERN = re.compile(r"w(\d+)a(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class BitSpec:
    """Nominal widths of one row of the table.

    Width 16 is the identity quantizer: the tensor stays in the dtype the model runs in, neither
    rounded nor clipped, while every transform around it still runs.

    Attributes:
        w: Weight width in bits, 2 to 8 or 16.
        a: Activation width in bits, 2 to 8 or 16.
    """

    w: int
    a: int

    def __post_init__(self) -> None:
        for side, width in (("weight", self.w), ("activation", self.a)):
            if width not in (*INTEGER_WIDTHS, IDENTITY_WIDTH):
                raise UsageError(
                    f"bits 'w{self.w}a{self.a}' has a {side} width of {width}",
                    "widths are 2 to 8, or 16 for no quantization on that side: w4a6, w8a8, w4a16",
                )

    @classmethod
    def parse(cls, text: str) -> BitSpec:
        """Read ``w4a6``.

        Raises:
            UsageError: The text is not of that form or a width is out of range.
        """
        found = _PATTERN.fullmatch(text.strip().lower())
        if found is None:
            raise UsageError(
                f"bits '{text}' cannot be read",
                "write weight bits, then activation bits: w4a6, w8a8, w4a16",
            )
        return cls(w=int(found[1]), a=int(found[2]))

    @property
    def is_identity(self) -> bool:
        """Whether neither side is quantized."""
        return self.w == IDENTITY_WIDTH and self.a == IDENTITY_WIDTH

    def __str__(self) -> str:
        return f"w{self.w}a{self.a}"
