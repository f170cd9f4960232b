"""Packing is dense and exact."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.quant.layers.pack import pack, unpack


@settings(deadline=None)
@given(
    bits=st.integers(2, 8), signed=st.booleans(), count=st.integers(1, 70), seed=st.integers(0, 99)
)
def test_codes_come_back_and_take_b_bits_each(
    bits: int, signed: bool, count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    low = -(2 ** (bits - 1)) if signed else 0
    codes = torch.randint(low, low + 2**bits, (count,), generator=generator)
    codes = codes.to(torch.int8 if signed else torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == math.ceil(count * bits / 8)
    assert torch.equal(unpack(packed, bits, (count,), signed=signed), codes)


def test_four_bit_codes_lie_two_to_a_byte_low_nibble_first() -> None:
    packed = pack(torch.tensor([[1, -1], [7, -8]], dtype=torch.int8), 4)
    assert packed.tolist() == [0xF1, 0x87]
