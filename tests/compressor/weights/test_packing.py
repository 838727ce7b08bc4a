import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.weights.packing import pack, unpack


@settings(deadline=None, max_examples=150)
@given(
    bits=st.sampled_from([1, 2, 4, 8]), rows=st.integers(1, 6), columns=st.integers(1, 40), seed=st.integers(0, 9999)
)
def test_what_is_packed_comes_out_again(bits: int, rows: int, columns: int, seed: int) -> None:
    numbers = torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed))
    packed = pack(numbers, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, -(-columns * bits // 8))
    assert torch.equal(unpack(packed, bits, columns), numbers.to(torch.uint8))


def test_the_first_number_is_in_the_lowest_bits() -> None:
    assert pack(torch.tensor([[1, 0, 0, 0, 0, 0, 0, 1, 1]]), 1).tolist() == [[0b10000001, 0b1]]
    assert pack(torch.tensor([[1, 2, 3, 0]]), 2).tolist() == [[0b00111001]]
    assert pack(torch.tensor([[0xA, 0xB]]), 4).tolist() == [[0xBA]]
