"""What samples have in common is on the disk once, and comes back to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from harness.models.block_input import BlockInput, Sample
from harness.models.families import family_by_name
from harness.models.trajectories import record_pool
from harness.quant.calibration.capture import each_first_block_input
from harness.quant.calibration.factors import expand_factors, factor
from harness.quant.calibration.samples import uniform_samples
from harness.quant.calibration.spill import FixedArguments, SpilledInputs
from harness.testing.conformance import PROMPTS, TINY_GEN
from harness.testing.miniatures import wan

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CPU = torch.device("cpu")


def bits(value: Tensor) -> Tensor:
    return value.contiguous().flatten().view(torch.uint8)


def rows(*kinds: int) -> Tensor:
    """One row of 1024 numbers a kind, ``[1, rows, 1024]``."""
    every = torch.randn(max(kinds) + 1, 1024, generator=torch.Generator().manual_seed(0))
    return torch.stack([every[kind] for kind in kinds])[None]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (torch.randn(1, 1, 6, 64).expand(2, 500, 6, 64), (1, 1, 6, 64)),
        (rows(*[0] * 40), (1, 1, 1024)),
        (rows(*[0] * 10, *[1] * 10, *[0] * 10), (1, 2, 1024)),
        (rows(*range(40)), (1, 40, 1024)),
        (rows(*[0, 1] * 20), (1, 40, 1024)),  # rows in turn are no runs
        (torch.randn(3), (3,)),
        (torch.tensor(2.0), ()),
        (torch.ones(0, 4), (0, 4)),
        (rows(*[0] * 40).bfloat16(), (1, 1, 1024)),
        (torch.ones(1, 64, 4096, dtype=torch.bool), (1, 1, 4096)),
        (torch.tensor([0.0, -0.0, float("nan")]).repeat(16, 1024), (1, 3072)),
    ],
)
def test_rows_that_repeat_are_kept_once_and_come_back_to_the_bit(
    value: Tensor, kept: tuple[int, ...]
) -> None:
    rest, steps = factor(value)
    assert tuple(rest.shape) == kept
    back = expand_factors(rest, steps)
    assert back.is_contiguous()
    assert back.shape == value.shape
    assert torch.equal(bits(back), bits(value))


def test_rows_are_the_same_only_where_every_bit_is() -> None:
    value = torch.zeros(1, 64, 1024)
    value[:, 32:] = -0.0
    rest, steps = factor(value)
    assert rest.shape[1] == 2
    assert torch.equal(bits(expand_factors(rest, steps)), bits(value))


def test_arguments_are_written_once_for_all_blocks_and_samples(tmp_path: Path) -> None:
    rotary, text = torch.randn(64, 64), torch.randn(1, 8, 512)
    fixed = FixedArguments(tmp_path / "fixed", CPU)

    def samples(seed: int) -> list[BlockInput]:
        return [
            BlockInput(
                sample=Sample(0, step),
                streams={"x": torch.full((1, 2), float(seed + step))},
                fixed={"rotary": (rotary.clone(), None), "text": text.clone(), "step": step},
            )
            for step in range(3)
        ]

    (tmp_path / "first").mkdir()
    first = SpilledInputs(tmp_path / "first", CPU, fixed=fixed).extend(samples(0))
    files = sorted((tmp_path / "fixed").iterdir())
    assert len(files) == 2
    stamps = [path.stat().st_mtime_ns for path in files]
    (tmp_path / "next").mkdir()
    following = (given.with_streams({"x": given.streams["x"] + 10}) for given in first)
    second = SpilledInputs(tmp_path / "next", CPU, fixed=fixed).extend(following)
    assert [path.stat().st_mtime_ns for path in files] == stamps
    first.clear()
    assert float(second[2].streams["x"][0, 0]) == 12
    assert torch.equal(second[2].fixed["rotary"][0], rotary)
    assert second[2].fixed["step"] == 2


def test_another_process_takes_over_the_files(tmp_path: Path) -> None:
    given = BlockInput(sample=Sample(1, 2), streams={"x": torch.randn(1, 4)}, fixed={"a": [1, "b"]})
    left = SpilledInputs(tmp_path, CPU).extend([given])
    found = SpilledInputs(tmp_path, CPU).restore(left.facts())
    assert torch.equal(found[0].streams["x"], given.streams["x"])
    assert (found[0].sample, found[0].fixed) == (Sample(1, 2), {"a": [1, "b"]})


def test_every_sample_that_is_read_is_a_sign_of_life(tmp_path: Path) -> None:
    read: list[int] = []
    given = BlockInput(sample=Sample(0, 0), streams={"x": torch.zeros(1)})
    kept = SpilledInputs(tmp_path, CPU, read=lambda: read.append(1)).extend([given, given])
    list(kept)
    assert len(read) == 2


def test_a_modulation_for_each_token_costs_little_more_than_the_hidden_state(
    tmp_path: Path,
) -> None:
    """Wan2.2-TI2V gives its blocks six vectors a token, equal within a frame."""
    pipeline = wan(expand_timesteps=True)
    (tmp_path / "pool").mkdir()
    pool = record_pool(
        pipeline, PROMPTS[:1], TINY_GEN, seed=0, folder=tmp_path / "pool",
        progress=lambda f, t: None,
    )  # fmt: skip
    family = family_by_name("wan")
    samples = uniform_samples(pool, 2, 2)
    given = list(each_first_block_input(pipeline.transformer, family, pool, samples))
    assert given[0].fixed["temb"].dim() == 4  # a row a token
    fixed = FixedArguments(tmp_path / "fixed", CPU)
    spilled = []
    for block in ("first", "targets"):
        (tmp_path / block).mkdir()
        spilled.append(SpilledInputs(tmp_path / block, CPU, fixed=fixed))
        spilled[-1].extend(given if block == "first" else spilled[0])
    for one, back in zip(given, spilled[1], strict=True):
        assert torch.equal(bits(back.fixed["temb"]), bits(one.fixed["temb"]))
    folders = [tmp_path / name for name in ("first", "targets", "fixed")]
    taken = sum(p.stat().st_size for folder in folders for p in folder.iterdir())
    plain = 2 * sum(
        value.nbytes
        for one in given
        for value in (*one.streams.values(), *_tensors(one.fixed.values()))
    )
    assert taken < plain / 4


def _tensors(values: object) -> list[Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        return []
    return [tensor for value in values for tensor in _tensors(value)]
