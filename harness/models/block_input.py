"""What a block of a denoiser is called with at one sample of a trajectory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor


class Sample(NamedTuple):
    """One candidate: a prompt of the pool at a step of its trajectory."""

    prompt: int
    step: int


@dataclass(kw_only=True)
class BlockInput:
    """Arguments of a block at one sample.

    Attributes:
        sample: Prompt and step.
        streams: The streams that blocks update, by argument name, each
            ``[branches, tokens, width]``.
        fixed: The other arguments, the same for every block.
        rows: Batch rows of a stream that belong to one guidance branch: 1, except where a family
            folds frames or positions into the batch.
    """

    sample: Sample
    streams: dict[str, Tensor]
    fixed: dict[str, Any] = field(default_factory=dict)
    rows: int = 1

    def with_streams(self, streams: dict[str, Tensor]) -> BlockInput:
        """Return the same sample with other stream values."""
        return replace(self, streams=streams)

    @property
    def branches(self) -> int:
        """Guidance branches stacked in the batch."""
        return self._batch() // self.rows

    def _batch(self) -> int:
        return next(iter(self.streams.values())).shape[0]

    def branch(self, index: int) -> BlockInput:
        """Keep one guidance branch."""
        branches, batch = self.branches, self._batch()

        def take(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(take(part) for part in value)
            if not isinstance(value, Tensor) or value.dim() == 0:
                return value
            if value.shape[0] not in (branches, batch):
                return value
            own = value.shape[0] // branches
            return value[index * own : (index + 1) * own]

        return replace(
            self,
            streams={k: take(v) for k, v in self.streams.items()},
            fixed={k: take(v) for k, v in self.fixed.items()},
        )

    def in_float32(self) -> BlockInput:
        """The same sample with every floating point tensor in single precision, for training."""

        def widen(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(widen(v) for v in value)
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.float() if floating else value

        return replace(
            self,
            streams={k: widen(v) for k, v in self.streams.items()},
            fixed={k: widen(v) for k, v in self.fixed.items()},
        )
