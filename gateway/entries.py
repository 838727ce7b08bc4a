"""Counts the fields of a protobuf message before it is parsed.

Parsing turns a field of two bytes into an object of some eighty: a message of nothing but such fields would take forty
times its own size. Source: protobuf's encoding, https://protobuf.dev/programming-guides/encoding.
"""

from typing import Final

_VARINT, _EIGHT_BYTES, _LENGTH, _GROUP, _GROUP_END, _FOUR_BYTES = range(6)
_LONGEST_BITS: Final = 70
_FIXED: Final = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4, _GROUP: 0, _GROUP_END: 0}


def has_more_than(most: int, message: bytes) -> bool:
    """Whether `message` has more fields than `most`, those inside of fields not counted. One that is broken has not:
    parsing it will tell.
    """
    offset = count = 0
    try:
        while offset < len(message):
            count += 1
            if count > most:
                return True
            tag, offset = _varint(message, offset)
            kind = tag & 7
            if kind == _LENGTH:
                length, offset = _varint(message, offset)
                offset += length
            elif kind == _VARINT:
                _, offset = _varint(message, offset)
            elif kind in _FIXED:
                offset += _FIXED[kind]
            else:
                return False
    except IndexError:
        return False
    return False


def _varint(message: bytes, offset: int) -> tuple[int, int]:
    """The number that begins at `offset`, and where the next thing begins. Raises IndexError where it does not end, or
    is longer than numbers are.
    """
    number = shift = 0
    while True:
        byte = message[offset]
        offset += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, offset
        shift += 7
        if shift >= _LONGEST_BITS:
            raise IndexError
