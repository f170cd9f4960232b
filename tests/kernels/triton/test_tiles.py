"""Tiles are a function of the shape, and fit the memory of the devices."""

from __future__ import annotations

import pytest

from harness.kernels.triton.tiles import chunk_of, pick_tile


@pytest.mark.parametrize(("capability", "most"), [((8, 0), 99), ((8, 9), 99), ((9, 0), 227)])
def test_inputs_under_way_fit_shared_memory(capability: tuple[int, int], most: int) -> None:
    for tokens in (1, 17, 65, 257, 35552):
        for group in (0, 32, 64, 128, 192):
            tile = pick_tile(tokens, 3072, group=group, capability=capability)
            assert tile.shared_bytes(packed=False) <= most << 10
            assert tile.inner % 32 == 0
            assert not group or group % tile.inner == 0


def test_few_tokens_and_narrow_outputs_have_small_tiles() -> None:
    few = pick_tile(3, 3072, group=0, capability=(9, 0))
    many = pick_tile(35552, 3072, group=0, capability=(9, 0))
    assert few.tokens < many.tokens
    assert pick_tile(35552, 48, group=0, capability=(9, 0)).out == 64


def test_chunks_are_powers_of_two_in_the_group() -> None:
    assert [chunk_of(group) for group in (32, 64, 96, 128, 160, 192, 256)] == [
        32, 64, 32, 128, 32, 64, 128,
    ]  # fmt: skip
    for group in (0, 16, 48):
        with pytest.raises(ValueError, match="multiple of 32"):
            chunk_of(group)
