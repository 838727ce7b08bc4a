"""HTTP/2 header compression (RFC 7541): reads what clients send, writes what needs no table.

A client's blocks repeat: those that change no table are remembered whole, so that a header costs a look-up.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Final, Generic, TypeVar

Header = tuple[str, str]
T = TypeVar("T")

MAX_TABLE_BYTES: Final = 4096
"""The size of table that a client may assume without asking."""

ENTRY_BYTES: Final = 32
"""What an entry counts for beside its name and its value."""

HARD_FACTOR: Final = 4
"""Headers over the bound are read on, for the table's sake, up to so many times the bound."""

_MAX_RESIZES: Final = 2
_REMEMBERED: Final = 64
_REMEMBERED_BYTES: Final = 512
_SHORT_BYTES: Final = 128
_MAX_INTEGER: Final = 1 << 24

EMPTY_TABLE: Final = b"\x20"
"""Tells the peer, before our first header, that we keep no table: whatever it allows is right then."""


class HeaderError(Exception):
    """The block cannot be read; nor can anything after it on the connection."""


class HeadersTooLarge(Exception):
    """The block unpacks to more than is accepted; it was read to its end, so those after it can be read."""


class HeaderDecoder(Generic[T]):
    """One connection's reading side.

    `max_bytes`: of one block's names and values, `ENTRY_BYTES` more each. `read`: what to make of the headers.
    """

    def __init__(self, max_bytes: int, read: Callable[[tuple[Header, ...]], T]) -> None:
        self._max_bytes = max_bytes
        self._read = read
        self._table: list[Header] = []
        self._table_bytes = 0
        self._table_limit = MAX_TABLE_BYTES
        self._remembered: dict[bytes, T] = {}

    def decode(self, block: bytes) -> T:
        """Raises `HeaderError`, `HeadersTooLarge`."""
        known = self._remembered.get(block)
        if known is not None:
            return known
        try:
            headers, changed = self._decode(block)
        except IndexError as error:
            raise HeaderError("a header block ends too early") from error
        if changed or len(self._remembered) >= _REMEMBERED:
            self._remembered.clear()
        if headers is None:
            raise HeadersTooLarge(f"headers of more than {self._max_bytes} bytes; each counts {ENTRY_BYTES} more")
        made = self._read(headers)
        if not changed and len(block) <= _REMEMBERED_BYTES:
            self._remembered[block] = made
        return made

    def _decode(self, block: bytes) -> tuple[tuple[Header, ...] | None, bool]:
        """The headers, None where they are too large, and whether the table changed."""
        most = HARD_FACTOR * self._max_bytes
        if len(block) > most:
            raise HeaderError(f"a header block of more than {most} bytes")
        headers: list[Header] = []
        offset, size, resizes, changed = 0, 0, 0, False
        while offset < len(block):
            first = block[offset]
            if first & 0x80:
                index, offset = _integer(block, offset, 7)
                header = self._entry(index)
            elif first & 0xE0 == 0x20:
                if size:
                    raise HeaderError("a table size comes after a header")
                resizes += 1
                if resizes > _MAX_RESIZES:
                    raise HeaderError(f"a header block with more than {_MAX_RESIZES} table sizes")
                limit, offset = _integer(block, offset, 5)
                self._resize(limit)
                changed = True
                continue
            else:
                indexed = bool(first & 0x40)
                index, offset = _integer(block, offset, 6 if indexed else 4)
                name, offset = (self._entry(index)[0], offset) if index else _string(block, offset)
                value, offset = _string(block, offset)
                header = (name, value)
                if indexed:
                    self._insert(header)
                    changed = True
            size += _entry_bytes(header)
            if size <= self._max_bytes:
                headers.append(header)
            elif size > most:
                raise HeaderError(f"headers of more than {most} bytes")
        return (tuple(headers) if size <= self._max_bytes else None), changed

    def _entry(self, index: int) -> Header:
        if index == 0:
            raise HeaderError("header 0 does not exist")
        if index <= len(STATIC_TABLE):
            return STATIC_TABLE[index - 1]
        place = index - len(STATIC_TABLE)
        if place > len(self._table):
            raise HeaderError(f"header {index} does not exist")
        return self._table[-place]

    def _insert(self, header: Header) -> None:
        self._table.append(header)
        self._table_bytes += _entry_bytes(header)
        self._evict()

    def _resize(self, limit: int) -> None:
        if limit > MAX_TABLE_BYTES:
            raise HeaderError(f"a table of {limit} bytes; at most {MAX_TABLE_BYTES} are allowed")
        self._table_limit = limit
        self._evict()

    def _evict(self) -> None:
        gone = 0
        while self._table_bytes > self._table_limit:
            self._table_bytes -= _entry_bytes(self._table[gone])
            gone += 1
        del self._table[:gone]


def encode(*headers: Header) -> bytes:
    """Headers as literals that no table needs to know. Names and values are ASCII, each under 2 MiB."""
    parts = bytearray()
    for name, value in headers:
        parts.append(0)
        for text in (name, value):
            raw = text.encode("ascii")
            parts += _packed(len(raw)) + raw
    return bytes(parts)


def _packed(number: int) -> bytes:
    if number < 127:
        return bytes((number,))
    packed = bytearray((127,))
    number -= 127
    while number > 127:
        packed.append(number & 127 | 128)
        number >>= 7
    packed.append(number)
    return bytes(packed)


def _entry_bytes(header: Header) -> int:
    return len(header[0]) + len(header[1]) + ENTRY_BYTES


def _integer(block: bytes, offset: int, bits: int) -> tuple[int, int]:
    """The number whose first `bits` bits are at `offset`, and where it ends."""
    most = (1 << bits) - 1
    number = block[offset] & most
    offset += 1
    if number < most:
        return number, offset
    shift = 0
    while True:
        byte = block[offset]
        offset += 1
        number += (byte & 127) << shift
        if number > _MAX_INTEGER or shift > 28:
            raise HeaderError("a number in a header block is too large")
        if byte < 128:
            return number, offset
        shift += 7


def _string(block: bytes, offset: int) -> tuple[str, int]:
    """The text at `offset`, and where it ends."""
    packed = block[offset] & 0x80
    length, offset = _integer(block, offset, 7)
    end = offset + length
    if end > len(block):
        raise HeaderError("a header block ends within a text")
    raw = block[offset:end]
    if packed:
        raw = _unpacked_short(raw) if len(raw) < _SHORT_BYTES else _unpacked(raw)
    return raw.decode("latin-1"), end


@lru_cache(maxsize=1024)
def _unpacked_short(raw: bytes) -> bytes:
    return _unpacked(raw)


def _unpacked(raw: bytes) -> bytes:
    """Text packed with the code of RFC 7541, appendix B."""
    text = bytearray()
    state = 0
    for byte in raw:
        state, symbol = _STEPS[state | byte >> 4]
        text += symbol
        state, symbol = _STEPS[state | byte & 15]
        text += symbol
    if state == _AFTER_END:
        raise HeaderError("a packed text holds its end mark")
    if state not in _FILLED:
        raise HeaderError("a packed text is not filled up with ones")
    return bytes(text)


_END: Final = 256
_LENGTHS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b08060606"
    "0505050606060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717171817"
    "181816171817171717151617161717181615141616171715171616181516171715151615171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a17"
    "1a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
"""Bits of each symbol's code, which is canonical: shorter ones first, then by symbol, each one more than the last."""


def _canonical_codes(lengths: bytes) -> dict[int, int]:
    """Symbol by code; a 1 stands before each code, so that leading zeros count."""
    codes: dict[int, int] = {}
    code = length = 0
    for symbol in sorted(range(len(lengths)), key=lambda symbol: (lengths[symbol], symbol)):
        code <<= lengths[symbol] - length
        length = lengths[symbol]
        codes[1 << length | code] = symbol
        code += 1
    return codes


def _steps(codes: dict[int, int]) -> tuple[list[tuple[int, bytes]], int, frozenset[int]]:
    """How four bits lead from one place within a code to the next.

    Returns a list of next state and symbol, if one ended there, by state and four bits; the state after the end mark;
    and the states that a text may end in: on a symbol's edge, or up to seven ones after it. A state is a multiple of
    16, and 0 an edge; no code is shorter than five bits, so that at most one ends within four.
    """
    within = sorted({code >> shift for code in codes for shift in range(1, code.bit_length())})
    state_of = {code: 16 * place for place, code in enumerate(within)}
    after_end = 16 * len(within)
    steps: list[tuple[int, bytes]] = []
    for start in within:
        for four in range(16):
            code, ended = start, b""
            for shift in (3, 2, 1, 0):
                code = code << 1 | four >> shift & 1
                symbol = codes.get(code)
                if symbol == _END:
                    break
                if symbol is not None:
                    code, ended = 1, bytes((symbol,))
            steps.append((state_of.get(code, after_end), ended))
    steps += [(after_end, b"")] * 16
    return steps, after_end, frozenset(state_of[(1 << ones) - 1] for ones in range(1, 9))


_STEPS, _AFTER_END, _FILLED = _steps(_canonical_codes(_LENGTHS))

STATIC_TABLE: Final[tuple[Header, ...]] = (
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
)
"""RFC 7541, appendix A; the first has index 1."""
