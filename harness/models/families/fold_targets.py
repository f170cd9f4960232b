"""What can take a channel scale of an input: the modules that produce it, and how they do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ModulationFold:
    """Fold into the linear that produces the adaLN shift and scale.

    PTQ4DiT (arXiv 2405.16005), eq. 19-21.

    Attributes:
        linear: The modulation linear, relative to the block.
        chunks: Equal chunks its output is split into.
        pairs: (shift, scale) chunk indices, one pair for each stream that feeds the group.
    """

    linear: str
    chunks: int
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueFold:
    """Fold into the value projections.

    An attention output channel is a token mix of one value channel, so it takes that one's scale.

    Attributes:
        linears: Every value projection that feeds the same attention sum, relative to the block.
        leading: The attention output is only the first channels of the group's input; the others
            have no producer that could take a scale.
    """

    linears: tuple[str, ...]
    leading: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFold:
    """Fold into a modulation that is the block's table plus what all blocks share (adaLN-single).

    The shared part cannot take one block's scale, so that it is multiplied when the block is
    called: a few vectors for each sample and step, not for each token.

    Attributes:
        argument: Argument of the block with the shared part; its last extents hold ``rows`` vectors
            of the block's width one after another.
        table: Parameter of the block, ``rows`` vectors.
        rows: Vectors of the modulation.
        pair: (shift, scale) rows.
        upcast: The block adds both in single precision, whatever it is run in.
    """

    argument: str
    table: str
    rows: int
    pair: tuple[int, int]
    upcast: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class NormFold:
    """Fold into weight and bias of an affine norm that feeds the group alone.

    Attributes:
        norm: The norm, relative to the block.
    """

    norm: str


Fold = ModulationFold | ValueFold | TableFold | NormFold
