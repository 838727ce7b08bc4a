"""Counts what parsing a ModelInferRequest would make, before it is parsed.

Parsing turns a field of two bytes into an object of some eighty, and a number of one byte into one of eight: a message
of nothing but such would take many times its own size. Source: protobuf's encoding,
https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator, Mapping
from typing import Final

MOST_FIELDS: Final = 4096
"""Of the request, its inputs and its outputs, dimensions of shapes among them."""
MOST_ELEMENTS: Final = 1 << 14
"""Of typed contents that are objects of their own: BYTES, and numbers that are not packed."""
MOST_NUMBERS: Final = 1 << 22
"""Of typed contents, packed."""

_VARINT, _EIGHT_BYTES, _LENGTH, _GROUP, _GROUP_END, _FOUR_BYTES = range(6)
_LONGEST_BITS: Final = 70
_FIXED: Final = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4, _GROUP: 0, _GROUP_END: 0}

_INPUTS, _OUTPUTS = 5, 6
_SHAPE, _CONTENTS = 3, 5
_NUMBER_BYTES: Final[Mapping[int, int]] = {1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 4, 7: 8}
"""Bytes of a packed number in each field of InferTensorContents; 0: as many as it needs."""
_GO_ON: Final = bytes(range(128, 256))
"""Bytes of a number that are not its last."""
_LEAST_BYTES: Final = 2
"""Of a field."""
_PIECE_BYTES: Final = 64 << 10

_Field = tuple[int, int, int]
"""Its number, and where its content begins and ends where that is of any length (else both 0)."""


class Broken(Exception):
    """Parsing will tell."""


def too_much(message: bytes) -> str:
    """What `message` has more of than any model takes; "" where it does not, or is broken: parsing will tell."""
    counts = _Counts(message)
    try:
        return counts.of_request()
    except Broken:
        return ""


class _Counts:
    def __init__(self, message: bytes) -> None:
        self._message = message
        self._fields = self._elements = self._numbers = 0

    def of_request(self) -> str:
        for number, begins, ends in self._fields_in(0, len(self._message)):
            self._fields += 1
            if number in (_INPUTS, _OUTPUTS):
                self._count_tensor(begins, ends, is_input=number == _INPUTS)
            if too_much := self._too_much():
                return too_much
        return ""

    def _count_tensor(self, begins: int, ends: int, *, is_input: bool) -> None:
        for number, inner, end in self._fields_in(begins, ends):
            self._fields += 1
            if is_input and number == _SHAPE:
                self._fields += self._varints(inner, end)
            elif is_input and number == _CONTENTS:
                self._count_contents(inner, end)
            if self._too_much():
                return

    def _count_contents(self, begins: int, ends: int) -> None:
        if self._elements + (ends - begins) // _LEAST_BYTES <= MOST_ELEMENTS:
            self._elements += (ends - begins) // _LEAST_BYTES  # no more than that
            return
        for number, inner, end in self._fields_in(begins, ends):
            self._elements += 1
            if number in _NUMBER_BYTES:
                size = _NUMBER_BYTES[number]
                self._numbers += (end - inner) // size if size else self._varints(inner, end)
            if self._too_much():
                return

    def _too_much(self) -> str:
        if self._fields > MOST_FIELDS:
            return (
                f"more than {MOST_FIELDS} inputs, outputs, parameters, dimensions and raw contents together; "
                "put rows into one tensor"
            )
        if self._elements > MOST_ELEMENTS:
            return f"more than {MOST_ELEMENTS} elements in typed contents; send them in raw_input_contents"
        if self._numbers > MOST_NUMBERS:
            return f"more than {MOST_NUMBERS} numbers in typed contents; send them in raw_input_contents"
        return ""

    def _varints(self, begins: int, ends: int) -> int:
        return sum(
            len(self._message[piece : min(piece + _PIECE_BYTES, ends)].translate(None, _GO_ON))
            for piece in range(begins, ends, _PIECE_BYTES)
        )

    def _fields_in(self, offset: int, ends: int) -> Iterator[_Field]:
        """Raises `Broken`."""
        while offset < ends:
            tag, offset = self._varint(offset)
            kind = tag & 7
            if kind == _LENGTH:
                length, begins = self._varint(offset)
                offset = begins + length
                if offset > ends:
                    raise Broken
                yield tag >> 3, begins, offset
                continue
            if kind == _VARINT:
                _, offset = self._varint(offset)
            elif kind in _FIXED:
                offset += _FIXED[kind]
            else:
                raise Broken
            yield tag >> 3, 0, 0

    def _varint(self, offset: int) -> tuple[int, int]:
        """The number that begins at `offset`, and where the next thing begins. Raises `Broken` where it does not end,
        or is longer than numbers are.
        """
        number = shift = 0
        while shift < _LONGEST_BITS and offset < len(self._message):
            byte = self._message[offset]
            offset += 1
            number |= (byte & 127) << shift
            if byte < 128:
                return number, offset
            shift += 7
        raise Broken
