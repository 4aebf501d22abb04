"""Codes as bits: what is packed comes back, in as few bytes as there can be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losatok_ext.formats.code_bits import bits_of, pack_codes, packed_bytes, unpack_codes

SIZES = st.one_of(st.integers(1, 70), st.sampled_from([255, 256, 257, 1 << 31, (1 << 62) + 1, 1 << 63]))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), sizes=st.lists(SIZES, min_size=1, max_size=9), frames=st.integers(0, 40))
def test_codes_come_back(data, sizes, frames):
    rows = [[data.draw(st.integers(0, size - 1)) for size in sizes] for _ in range(frames)]
    codes = torch.tensor(rows, dtype=torch.int64).reshape(frames, len(sizes))
    packed = pack_codes(codes, sizes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_bytes(frames, sizes),)
    assert torch.equal(unpack_codes(packed, frames, sizes), codes)


@pytest.mark.parametrize(("size", "bits"), [(1, 1), (2, 1), (3, 2), (1000, 10), (1024, 10), (1025, 11), (1 << 63, 63)])
def test_a_code_takes_the_bits_that_its_codebook_needs(size, bits):
    assert bits_of(size) == bits


@pytest.mark.parametrize("frames", [4095, 4096, 4097, 9000])
def test_long_recordings_are_packed_in_pieces_without_gaps(frames):
    sizes = (1024, 3, 7)  # 15 bits a frame: pieces end on a byte all the same
    codes = torch.stack([torch.randint(size, (frames,)) for size in sizes], 1)
    packed = pack_codes(codes, sizes)
    assert len(packed) == -(-frames * 15 // 8)
    assert torch.equal(unpack_codes(packed, frames, sizes), codes)


def test_the_order_of_bits():
    """Lowest bit first: 5 of 8 codes is 101, 2 of 4 is 01; two frames fill bits 0 to 9."""
    packed = pack_codes(torch.tensor([[5, 2], [1, 3]]), (8, 4))
    assert packed.tolist() == [0b001_10_101, 0b000000_11]


@pytest.mark.parametrize(("code", "size"), [(-1, 4), (4, 4), (1, 1), (1 << 62, 8)])
def test_codes_out_of_range_are_refused(code, size):
    with pytest.raises(ValueError, match=rf"codes should lie within 0\.\.{size - 1} at place 1, got"):
        pack_codes(torch.tensor([[0, code]]), (2, size))


def test_bits_that_are_no_code_are_refused():
    with pytest.raises(ValueError, match=r"within 0\.\.4 at place 0, got 7\.\.7"):
        unpack_codes(torch.tensor([7], dtype=torch.uint8), 1, (5,))
    with pytest.raises(ValueError, match=r"should hold 1 bytes, got shape \[2\]"):
        unpack_codes(torch.tensor([7, 7], dtype=torch.uint8), 1, (5,))
