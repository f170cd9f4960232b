"""Tiles of the integer product, from a fixed table: the same shape always runs the same kernel."""

from __future__ import annotations

from typing import NamedTuple

CHUNK = 128
"""Most channels that are multiplied at a time."""


class Tile(NamedTuple):
    """How a product is cut.

    Attributes:
        tokens: Rows of the output in a program.
        out: Columns of the output in a program.
        inner: Channels multiplied at a time.
        warps: Warps of a program.
        stages: Tiles of the inputs under way at a time.
    """

    tokens: int
    out: int
    inner: int
    warps: int
    stages: int

    def shared_bytes(self, packed: bool) -> int:
        """Shared memory that the tiles of the inputs take, at least."""
        weight = self.out * self.inner // (2 if packed else 1)
        return self.stages * (self.tokens * self.inner + weight)


def chunk_of(group: int) -> int:
    """Channels of one integer sum of a grouped weight: the largest power of two in the group.

    A group is one chunk where it is 32, 64 or 128, and several with one step otherwise.

    Raises:
        ValueError: The group is no multiple of 32, what a tensor core multiplies at a time.
    """
    if group <= 0 or group % 32:
        raise ValueError(f"groups of {group} channels, expected a multiple of 32")
    return min(CHUNK, group & -group)


# (most tokens, tile by channel, tile by group); the last holds for all larger ones. Grouped sums
# keep a float32 tile beside the int32 one, which halves what registers hold.
_AMPERE = (
    (16, Tile(16, 64, 128, 4, 4), Tile(16, 64, 128, 4, 4)),
    (64, Tile(64, 64, 128, 4, 4), Tile(64, 64, 128, 4, 3)),
    (256, Tile(64, 128, 128, 4, 3), Tile(64, 128, 128, 4, 3)),
    (None, Tile(128, 128, 128, 8, 3), Tile(128, 128, 128, 8, 3)),
)
_HOPPER = (
    (16, Tile(16, 64, 128, 4, 4), Tile(16, 64, 128, 4, 4)),
    (64, Tile(64, 64, 128, 4, 4), Tile(64, 64, 128, 4, 4)),
    (256, Tile(64, 128, 128, 4, 4), Tile(64, 128, 128, 4, 4)),
    (None, Tile(128, 256, 128, 8, 4), Tile(128, 128, 128, 8, 4)),
)


def pick_tile(tokens: int, out_features: int, *, group: int, capability: tuple[int, int]) -> Tile:
    """The tile of a product.

    The table is derived from registers and shared memory, and from no measurement: 96 KiB of shared
    memory at most below compute capability 9.0 (what 8.6 and 8.9 have), 192 KiB from there.

    Args:
        tokens: Rows of the output.
        out_features: Columns of the output.
        group: Input channels that share a step, of the weight or of the tokens; 0 for none.
        capability: Compute capability of the device.
    """
    table = _HOPPER if capability >= (9, 0) else _AMPERE
    row = next(row for row in table if row[0] is None or tokens <= row[0])
    tile = row[2] if group else row[1]
    if out_features <= tile.out // 2:
        tile = tile._replace(out=max(64, 1 << (out_features - 1).bit_length()))
    return tile._replace(inner=chunk_of(group)) if group else tile
