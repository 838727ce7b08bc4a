"""The wire codec of the data plane: frames to messages and back (contract: protos/frames.proto).

A `Packer` turns frames into messages: small frames that wait together leave together, a large payload leaves in pieces
so that it never holds up a small one for longer than a piece takes. An `Unpacker` is the reverse. Neither does I/O, and
neither knows what the tensors mean.
"""

import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from google.protobuf.message import DecodeError

from protos import frames_pb2 as pb
from worker.errors import ShardlineError, TooLarge, from_code
from worker.nouns import Answer, Forecast, Load, Tensor, Timing, Work

METHOD: Final = "/shardline.v1.Worker/Stream"
"""The call that carries messages both ways."""

MESSAGE_BYTES: Final = 1 << 20
"""A message is closed once it holds this much payload; a larger payload travels in pieces of this size."""

MAX_MESSAGE_BYTES: Final = 4 * MESSAGE_BYTES
"""What a receiver accepts: pieces, their headers and the last small frame that went over the mark."""

MAX_PAYLOAD_BYTES: Final = (1 << 31) - 1
"""No frame carries 2 GiB or more, whole or in pieces."""

_MAX_FRAMES_IN_A_MESSAGE: Final = 512
_HEADER_LENGTH: Final = struct.Struct("<I")

Buffer: TypeAlias = bytes | memoryview


class FrameError(ShardlineError):
    """The other side broke the contract of the stream; the stream is closed."""

    code = 13


@dataclass(slots=True)
class Outgoing:
    """A frame to be sent: its header and the buffers of its payload, none of them copied yet."""

    frame: pb.Frame
    buffers: list[Buffer]
    size: int


@dataclass(frozen=True, slots=True)
class IncomingRequest:
    id: int
    remaining_s: float
    priority: int
    traceparent: str
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class IncomingReply:
    """`error` None: success. `retriable`: nothing of the request was computed, another replica may take it."""

    id: int
    answer: Answer
    error: ShardlineError | None
    retriable: bool


@dataclass(frozen=True, slots=True)
class IncomingCancel:
    id: int


Incoming: TypeAlias = IncomingRequest | IncomingReply | IncomingCancel


def request_frame(frame_id: int, work: Work) -> Outgoing:
    """Raises `TooLarge` where the tensors hold 2 GiB or more."""
    buffers, size, headers = _payload(work.tensors)
    request = pb.Request(
        remaining_us=max(0, int(work.remaining * 1e6)),
        priority=work.priority,
        traceparent=work.traceparent,
        tensors=headers,
    )
    return Outgoing(pb.Frame(id=frame_id, request=request), buffers, size)


def reply_frame(frame_id: int, answer: Answer) -> Outgoing:
    """Raises `TooLarge` where the tensors hold 2 GiB or more."""
    buffers, size, headers = _payload(answer.tensors)
    timing = pb.Timing(
        queue_ns=answer.timing.queue_ns, compute_ns=answer.timing.compute_ns, batch_rows=answer.timing.batch_rows
    )
    return Outgoing(pb.Frame(id=frame_id, reply=pb.Reply(tensors=headers, timing=timing)), buffers, size)


def error_frame(frame_id: int, error: ShardlineError, *, retriable: bool = False) -> Outgoing:
    reply = pb.Reply(code=error.code, message=str(error), retriable=retriable, confirmed=error.confirmed)
    return Outgoing(pb.Frame(id=frame_id, reply=reply), [], 0)


def cancel_frame(frame_id: int) -> Outgoing:
    return Outgoing(pb.Frame(id=frame_id, cancel=pb.Cancel()), [], 0)


def _payload(tensors: Iterable[Tensor]) -> tuple[list[Buffer], int, list[pb.TensorHeader]]:
    buffers: list[Buffer] = []
    headers: list[pb.TensorHeader] = []
    size = 0
    for tensor in tensors:
        nbytes = len(tensor.data) if isinstance(tensor.data, bytes) else tensor.data.nbytes
        headers.append(pb.TensorHeader(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, bytes=nbytes))
        buffers.append(tensor.data)
        size += nbytes
    if size > MAX_PAYLOAD_BYTES:
        raise TooLarge(f"the tensors hold {size} bytes; a frame carries at most {MAX_PAYLOAD_BYTES}: send fewer rows")
    return buffers, size, headers


class Packer:
    """Frames in, messages out, oldest first; large payloads in pieces, in turn, beside the small frames."""

    def __init__(self) -> None:
        self._small: deque[Outgoing] = deque()
        self._large: deque[_Pieces] = deque()

    def __len__(self) -> int:
        return len(self._small) + len(self._large)

    def add(self, outgoing: Outgoing) -> None:
        if outgoing.size > MESSAGE_BYTES:
            self._large.append(_Pieces(outgoing))
        else:
            self._small.append(outgoing)

    def discard(self, frame_id: int) -> None:
        """Drops what has not been sent of a large frame."""
        self._large = deque(pieces for pieces in self._large if pieces.outgoing.frame.id != frame_id)

    def message(self, load: Load | None = None) -> bytes:
        """The next message; one that carries only `load` where nothing waits."""
        batch = pb.FrameBatch()
        if load is not None:
            batch.load.queued_rows = load.queued_rows
            batch.load.seconds_per_row = load.seconds_per_row
            batch.load.draining = load.draining
            batch.load.finish_s = load.forecast.finish_s
            batch.load.pace_s = load.forecast.pace_s
            batch.load.least_s = load.forecast.least_s
        payload: list[Buffer] = []
        frames: list[pb.Frame] = []
        size = 0
        while self._small and size < MESSAGE_BYTES and len(frames) < _MAX_FRAMES_IN_A_MESSAGE:
            outgoing = self._small.popleft()
            outgoing.frame.payload_bytes = outgoing.size
            frames.append(outgoing.frame)
            payload += outgoing.buffers
            size += outgoing.size
        if self._large:
            pieces = self._large.popleft()
            frame, buffers = pieces.take(MESSAGE_BYTES)
            frames.append(frame)
            payload += buffers
            if pieces.left:
                self._large.append(pieces)
        batch.frames.extend(frames)
        header = batch.SerializeToString()
        return b"".join((_HEADER_LENGTH.pack(len(header)), header, *payload))


class _Pieces:
    """What is left to send of a large frame."""

    def __init__(self, outgoing: Outgoing) -> None:
        self.outgoing = outgoing
        self.left = outgoing.size
        self._buffers = deque(memoryview(buffer).cast("B") for buffer in outgoing.buffers if len(buffer))

    def take(self, size: int) -> tuple[pb.Frame, list[Buffer]]:
        first = self.left == self.outgoing.size
        frame = self.outgoing.frame if first else pb.Frame(id=self.outgoing.frame.id, chunk=pb.Chunk())
        frame.payload_bytes = min(size, self.left)
        taken: list[Buffer] = []
        missing = frame.payload_bytes
        while missing:
            buffer = self._buffers.popleft()
            if buffer.nbytes > missing:
                self._buffers.appendleft(buffer[missing:])
                buffer = buffer[:missing]
            taken.append(buffer)
            missing -= buffer.nbytes
        self.left -= frame.payload_bytes
        return frame, taken


@dataclass(slots=True)
class _Partial:
    frame: pb.Frame
    payload: bytearray
    expected: int


class Unpacker:
    """Messages in, whole frames out. Holds at most `max_partial_bytes` of frames that are still arriving.

    wanted: whether anyone waits for the frame of this id; of others no piece is kept.
    """

    def __init__(
        self, max_partial_bytes: int = MAX_PAYLOAD_BYTES, wanted: Callable[[int], bool] = lambda _: True
    ) -> None:
        self.load: Load | None = None
        self._partial: dict[int, _Partial] = {}
        self._partial_bytes = 0
        self._max_partial_bytes = max_partial_bytes
        self._wanted = wanted

    def feed(self, message: bytes) -> list[Incoming]:
        """Raises `FrameError` where the message breaks the contract."""
        batch, view = _open(message)
        if batch.HasField("load"):
            load = batch.load
            forecast = Forecast(load.finish_s, load.pace_s, load.least_s)
            self.load = Load(load.queued_rows, load.seconds_per_row, load.draining, forecast)
        incoming: list[Incoming] = []
        offset = 0
        for frame in batch.frames:
            end = offset + frame.payload_bytes
            if end > len(view):
                raise FrameError(f"frame {frame.id} announces more payload than its message holds")
            whole = self._whole(frame, view[offset:end])
            if whole is not None:
                incoming.append(whole)
            offset = end
        if offset != len(view):
            raise FrameError(f"a message holds {len(view) - offset} bytes that no frame announces")
        return incoming

    def _whole(self, frame: pb.Frame, payload: memoryview) -> Incoming | None:
        kind = frame.WhichOneof("kind")
        if kind == "cancel":
            self.forget(frame.id)
            return IncomingCancel(frame.id)
        if kind == "chunk":
            return self._append(frame.id, payload)
        if kind is None:
            raise FrameError(f"frame {frame.id} is of a kind that this version does not know")
        tensors = frame.request.tensors if kind == "request" else frame.reply.tensors
        expected = sum(tensor.bytes for tensor in tensors)
        if expected == len(payload):
            return _decode(frame, payload)
        if expected < len(payload) or expected > MAX_PAYLOAD_BYTES or frame.id in self._partial:
            raise FrameError(f"frame {frame.id}: its tensors take {expected} bytes, {len(payload)} came")
        if self._wanted(frame.id):
            self._partial[frame.id] = _Partial(frame, bytearray(), expected)
        return self._append(frame.id, payload)

    def _append(self, frame_id: int, payload: memoryview) -> Incoming | None:
        partial = self._partial.get(frame_id)
        if partial is None:
            return None  # it was on its way when its frame was given up
        partial.payload += payload
        self._partial_bytes += len(payload)
        if len(partial.payload) > partial.expected:
            raise FrameError(f"frame {frame_id} brings more than the {partial.expected} bytes it announced")
        if self._partial_bytes > self._max_partial_bytes:
            raise FrameError(f"over {self._max_partial_bytes} bytes of unfinished frames")
        if len(partial.payload) < partial.expected:
            return None
        self.forget(frame_id)
        return _decode(partial.frame, memoryview(partial.payload))

    def forget(self, frame_id: int) -> None:
        """Drops what has come of a frame that nobody waits for any more."""
        partial = self._partial.pop(frame_id, None)
        if partial is not None:
            self._partial_bytes -= len(partial.payload)


def _open(message: bytes) -> tuple[pb.FrameBatch, memoryview]:
    if len(message) < _HEADER_LENGTH.size:
        raise FrameError("a message is shorter than its length field")
    (length,) = _HEADER_LENGTH.unpack_from(message)
    start = _HEADER_LENGTH.size + length
    if start > len(message):
        raise FrameError(f"a message announces a header of {length} bytes and holds {len(message)}")
    try:
        return pb.FrameBatch.FromString(message[_HEADER_LENGTH.size : start]), memoryview(message)[start:]
    except DecodeError as error:
        raise FrameError(f"a message's header cannot be read: {error}") from error


def _decode(frame: pb.Frame, payload: memoryview) -> Incoming:
    if frame.HasField("request"):
        request = frame.request
        return IncomingRequest(
            frame.id,
            request.remaining_us / 1e6,
            request.priority,
            request.traceparent,
            _tensors(request.tensors, payload),
        )
    reply = frame.reply
    timing = Timing(reply.timing.queue_ns, reply.timing.compute_ns, reply.timing.batch_rows)
    error = from_code(reply.code, reply.message, confirmed=reply.confirmed) if reply.code else None
    return IncomingReply(frame.id, Answer(_tensors(reply.tensors, payload), timing), error, reply.retriable)


def _tensors(headers: Iterable[pb.TensorHeader], payload: memoryview) -> tuple[Tensor, ...]:
    tensors: list[Tensor] = []
    offset = 0
    for header in headers:
        end = offset + header.bytes
        tensors.append(Tensor(header.name, header.datatype, tuple(header.shape), payload[offset:end]))
        offset = end
    return tuple(tensors)
