import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import InvalidRequest, TooLarge
from worker.frames import (
    MAX_MESSAGE_BYTES,
    MESSAGE_BYTES,
    FrameError,
    IncomingCancel,
    IncomingReply,
    IncomingRequest,
    Packer,
    Unpacker,
    cancel_frame,
    error_frame,
    reply_frame,
    request_frame,
)
from worker.nouns import Answer, Forecast, Load, Tensor, Timing, Work

tensors = st.lists(
    st.builds(
        lambda name, data: Tensor(name, "UINT8", (len(data),), data),
        st.text(min_size=1, max_size=8),
        st.one_of(st.binary(max_size=64), st.integers(0, 3 * MESSAGE_BYTES).map(bytes)),
    ),
    max_size=4,
).map(tuple)


def work(*given_tensors: Tensor, deadline_s: float = 10.0) -> Work:
    return Work(given_tensors, time.monotonic() + deadline_s, 2, "00-trace")


def through(packer: Packer) -> list[IncomingRequest | IncomingReply | IncomingCancel]:
    unpacker = Unpacker()
    incoming = []
    while packer:
        message = packer.message()
        assert len(message) <= MAX_MESSAGE_BYTES
        incoming += unpacker.feed(message)
    return incoming


@given(st.lists(tensors, max_size=5))
def test_requests_come_out_as_they_went_in(requests: list[tuple[Tensor, ...]]) -> None:
    packer = Packer()
    for number, given_tensors in enumerate(requests):
        packer.add(request_frame(number, work(*given_tensors)))
    incoming = {one.id: one for one in through(packer) if isinstance(one, IncomingRequest)}
    assert len(incoming) == len(requests)
    for number, given_tensors in enumerate(requests):
        assert [(t.name, t.shape, bytes(t.data)) for t in incoming[number].tensors] == [
            (t.name, t.shape, t.data) for t in given_tensors
        ]
        assert 9 < incoming[number].remaining_s <= 10
        assert (incoming[number].priority, incoming[number].traceparent) == (2, "00-trace")


def test_a_reply_carries_its_timing_and_the_sender_s_load() -> None:
    packer = Packer()
    packer.add(reply_frame(7, Answer((Tensor("y", "FP32", (1,), b"1234"),), Timing(1, 2, 3))))
    unpacker = Unpacker()
    load = Load(5, 0.25, draining=True, forecast=Forecast(0.5, 0.25, 0.125))
    (reply,) = unpacker.feed(packer.message(load))
    assert isinstance(reply, IncomingReply)
    assert reply.answer.timing == Timing(1, 2, 3)
    assert reply.error is None
    assert unpacker.load == load


def test_an_error_comes_out_as_the_same_kind() -> None:
    packer = Packer()
    packer.add(error_frame(7, InvalidRequest("input 'x' is missing"), retriable=True))
    (reply,) = through(packer)
    assert isinstance(reply, IncomingReply)
    assert isinstance(reply.error, InvalidRequest)
    assert str(reply.error) == "input 'x' is missing"
    assert reply.retriable


def test_a_small_frame_waits_for_one_piece_of_a_large_one_at_most() -> None:
    packer = Packer()
    packer.add(request_frame(1, work(Tensor("large", "UINT8", (10 * MESSAGE_BYTES,), bytes(10 * MESSAGE_BYTES)))))
    unpacker = Unpacker()
    assert unpacker.feed(packer.message()) == []
    packer.add(request_frame(2, work(Tensor("small", "UINT8", (1,), b"s"))))
    (small,) = unpacker.feed(packer.message())
    assert small.id == 2


def test_two_large_frames_take_turns() -> None:
    packer = Packer()
    for number in (1, 2):
        data = bytes([number]) * (2 * MESSAGE_BYTES)
        packer.add(request_frame(number, work(Tensor("x", "UINT8", (len(data),), data))))
    first, second = through(packer)
    assert isinstance(first, IncomingRequest)
    assert isinstance(second, IncomingRequest)
    assert set(bytes(first.tensors[0].data)) == {1}
    assert set(bytes(second.tensors[0].data)) == {2}


def test_what_was_not_sent_of_a_cancelled_frame_never_leaves() -> None:
    packer, unpacker = Packer(), Unpacker()
    packer.add(request_frame(1, work(Tensor("x", "UINT8", (8 * MESSAGE_BYTES,), bytes(8 * MESSAGE_BYTES)))))
    unpacker.feed(packer.message())
    packer.discard(1)
    packer.add(cancel_frame(1))
    assert unpacker.feed(packer.message()) == [IncomingCancel(1)]
    assert not packer
    packer.add(request_frame(1, work(Tensor("x", "UINT8", (8 * MESSAGE_BYTES,), bytes(8 * MESSAGE_BYTES)))))
    assert unpacker.feed(packer.message()) == []  # the id is free again


def test_no_piece_is_kept_of_a_reply_that_nobody_waits_for() -> None:
    packer, waited_for = Packer(), {2}
    unpacker = Unpacker(max_partial_bytes=2 * MESSAGE_BYTES, wanted=waited_for.__contains__)
    large = Tensor("x", "UINT8", (MESSAGE_BYTES + 1,), bytes(MESSAGE_BYTES + 1))
    for frame_id in (1, 3, 5, 2):
        packer.add(reply_frame(frame_id, Answer((large,))))
    came = []
    while packer:
        came += unpacker.feed(packer.message())
    assert [incoming.id for incoming in came] == [2]


class Vast(bytes):
    """Claims to hold 2 GiB, so that a test of the limit needs no such memory."""

    def __len__(self) -> int:
        return 1 << 31


def test_two_gibibytes_are_refused() -> None:
    with pytest.raises(TooLarge, match="2147483648 bytes"):
        request_frame(1, work(Tensor("x", "UINT8", (1 << 31,), Vast())))


@pytest.mark.parametrize("cut", [0, 3, 4, 10, 60])
def test_a_message_that_ends_early_is_refused(cut: int) -> None:
    packer = Packer()
    packer.add(request_frame(1, work(Tensor("x", "UINT8", (64,), bytes(64)))))
    message = packer.message()
    with pytest.raises(FrameError):
        Unpacker().feed(message[:cut])


def test_a_message_with_bytes_to_spare_is_refused() -> None:
    with pytest.raises(FrameError, match="no frame announces"):
        Unpacker().feed(Packer().message() + b"?")


def test_more_unfinished_bytes_than_allowed_are_refused() -> None:
    packer = Packer()
    packer.add(request_frame(1, work(Tensor("x", "UINT8", (4 * MESSAGE_BYTES,), bytes(4 * MESSAGE_BYTES)))))
    unpacker = Unpacker(max_partial_bytes=MESSAGE_BYTES)
    unpacker.feed(packer.message())
    with pytest.raises(FrameError, match="unfinished"):
        unpacker.feed(packer.message())


@given(st.binary(max_size=200), st.integers(0, 100), st.integers(0, 255))
def test_a_damaged_message_raises_nothing_else_than_frame_error(junk: bytes, at: int, byte: int) -> None:
    packer = Packer()
    packer.add(request_frame(1, work(Tensor("x", "UINT8", (64,), bytes(64)))))
    message = bytearray(packer.message())
    message[at % len(message)] = byte
    for damaged in (bytes(message), junk):
        try:
            Unpacker().feed(damaged)
        except FrameError:
            continue
