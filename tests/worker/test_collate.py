import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.collate import TORCH_TYPES, Collator, to_tensors
from worker.errors import InvalidRequest
from worker.nouns import Tensor, TensorSpec, Work

IDS = TensorSpec("ids", "INT64", ("batch", "sequence"), pad=7)
MASK = TensorSpec("mask", "BOOL", ("batch", "sequence"), pad=False)
STATES = TensorSpec("states", "FP32", ("batch", "sequence", 3))
POOLED = TensorSpec("pooled", "FP32", ("batch", 3))


def tensor(name: str, value: torch.Tensor) -> Tensor:
    (made,) = to_tensors([value], [TensorSpec(name, "", ())])
    return made


def work(*tensors: Tensor) -> Work:
    return Work(tensors, time.monotonic() + 10)


def sentence(rows: int, length: int, start: int = 0) -> Work:
    ids = torch.arange(start, start + rows * length).reshape(rows, length)
    return work(tensor("ids", ids), tensor("mask", torch.ones(rows, length, dtype=torch.bool)))


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=6))
def test_each_request_gets_its_own_rows_back_trimmed(shapes: list[tuple[int, int]]) -> None:
    collator = Collator([IDS, MASK], [STATES, POOLED])
    works = [sentence(rows, length, 1000 * n) for n, (rows, length) in enumerate(shapes)]
    ids, mask = collator.stack(works)
    longest, rows = max(length for _, length in shapes), sum(rows for rows, _ in shapes)
    assert ids.shape == mask.shape == (rows, longest)
    assert (ids[~mask] == 7).all()
    states = ids[:, :, None].float().expand(-1, -1, 3)
    outputs = to_tensors([states, states[:, 0]], [STATES, POOLED])
    for n, ((rows, length), answer) in enumerate(zip(shapes, collator.split(outputs, works), strict=True)):
        expected = torch.arange(1000 * n, 1000 * n + rows * length).reshape(rows, length, 1).float().expand(-1, -1, 3)
        assert [one.shape for one in answer] == [(rows, length, 3), (rows, 3)]
        assert bytes(answer[0].data) == expected.contiguous().numpy().tobytes()
        assert bytes(answer[1].data) == expected[:, 0].contiguous().numpy().tobytes()


@pytest.mark.parametrize("datatype", sorted(TORCH_TYPES))
def test_every_datatype_survives_the_way_in_and_out(datatype: str) -> None:
    dtype = TORCH_TYPES[datatype]
    value = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype)
    spec = TensorSpec("x", datatype, ("batch", 3))
    (sent,) = to_tensors([value], [spec])
    assert sent.datatype == datatype
    (arrived,) = Collator([spec], [spec]).stack([work(sent)])
    assert arrived.dtype == dtype
    assert torch.equal(arrived.view(torch.uint8), value.view(torch.uint8))


@pytest.mark.parametrize(
    ("datatype", "pad"), [("FP32", -1.5), ("BF16", 0.5), ("INT8", -3), ("UINT16", 9), ("BOOL", True)]
)
def test_the_pad_value_is_exact_in_every_kind_of_number(datatype: str, pad: float) -> None:
    spec = TensorSpec("x", datatype, ("batch", "length"), pad=pad)
    short, long = (tensor("x", torch.zeros(1, n, dtype=TORCH_TYPES[datatype])) for n in (1, 3))
    (stacked,) = Collator([spec], []).stack([work(short), work(long)])
    assert stacked[0, 1:].tolist() == [pad, pad]
    assert stacked[1].tolist() == [0, 0, 0]


def test_any_nonzero_byte_is_true() -> None:
    scalar = TensorSpec("x", "BOOL", ())
    (value,) = Collator([scalar], [scalar]).stack([work(Tensor("x", "BOOL", (), b"\x02"))])
    assert value.item() is True
    spec = TensorSpec("x", "BOOL", ("batch",))
    (value,) = Collator([spec], [spec]).stack([work(Tensor("x", "BOOL", (3,), b"\x00\x01\xff"))])
    assert value.tolist() == [False, True, True]


def test_only_a_model_that_says_how_to_pad_mixes_lengths() -> None:
    padded = Collator([IDS, MASK], [STATES])
    plain = Collator([TensorSpec("ids", "INT64", ("batch", "sequence"))], [STATES])
    short, long = sentence(1, 3), sentence(1, 5)
    assert padded.measure(short).shape_key == padded.measure(long).shape_key
    assert plain.measure(short).shape_key != plain.measure(long).shape_key
    assert plain.measure(short).shape_key == plain.measure(sentence(4, 3)).shape_key


def test_an_output_that_cannot_be_trimmed_forbids_padding() -> None:
    flat = TensorSpec("flat", "FP32", ("batch", "2*sequence"))
    collator = Collator([IDS, MASK], [flat])
    assert collator.measure(sentence(1, 3)).shape_key != collator.measure(sentence(1, 5)).shape_key


def test_a_model_without_a_batch_axis_computes_requests_one_by_one() -> None:
    spec = TensorSpec("x", "FP32", (2,))
    collator = Collator([spec], [spec])
    one = work(tensor("x", torch.zeros(2)))
    assert collator.measure(one).shape_key != collator.measure(one).shape_key


def test_a_scalar_is_taken() -> None:
    spec = TensorSpec("x", "FP32", ())
    collator = Collator([spec], [spec])
    one = work(tensor("x", torch.tensor(2.5)))
    collator.measure(one)
    (value,) = collator.stack([one])
    assert value.item() == 2.5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Tensor("ids", "INT32", (1, 2), bytes(8)), "expected datatype INT64, got INT32"),
        (Tensor("ids", "INT64", (2,), bytes(16)), "expected shape"),
        (Tensor("ids", "INT64", (1, 2), bytes(15)), "takes 16 bytes, got 15"),
        (Tensor("ids", "INT64", (-1, -2), bytes(16)), "takes 16 bytes"),
        (Tensor("other", "INT64", (1, 2), bytes(16)), "input 'ids' is missing"),
        (Tensor("ids", "INT64", (1, 3), bytes(24)), "axis 'sequence' is 2 here and 3 in another"),
    ],
)
def test_a_tensor_that_does_not_match_is_named(bad: Tensor, message: str) -> None:
    mask = tensor("mask", torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(InvalidRequest, match=message):
        Collator([IDS, MASK], [POOLED]).measure(work(bad, mask))
