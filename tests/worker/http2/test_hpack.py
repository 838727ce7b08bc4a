import pytest

from tests.effort import counted
from worker.http2.hpack import (
    _LENGTHS,
    EMPTY_TABLE,
    STATIC_TABLE,
    Header,
    HeaderDecoder,
    HeaderError,
    HeadersTooLarge,
    encode,
)

REQUEST = ((":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com"))


def decoder(max_bytes: int = 10_000) -> HeaderDecoder[tuple[Header, ...]]:
    return HeaderDecoder(max_bytes, lambda headers: headers)


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        (
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ),
        (
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ),
    ],
    ids=["plain", "packed"],
)
def test_the_examples_of_the_rfc_read_as_it_says(first: str, second: str, third: str) -> None:
    """RFC 7541, C.3 and C.4: three requests on one connection."""
    one = decoder()
    assert one.decode(bytes.fromhex(first)) == REQUEST
    assert one.decode(bytes.fromhex(second)) == (*REQUEST, ("cache-control", "no-cache"))
    assert one.decode(bytes.fromhex(third)) == (
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    )


def test_what_we_write_reads_back_at_any_length() -> None:
    headers = tuple(("x" * length, "y" * (300 - length)) for length in (1, 126, 127, 128, 255, 299))
    assert decoder().decode(EMPTY_TABLE + encode(*headers)) == headers


def test_the_static_table_is_the_rfcs() -> None:
    assert len(STATIC_TABLE) == 61
    assert STATIC_TABLE[0] == (":authority", "")
    assert STATIC_TABLE[15] == ("accept-encoding", "gzip, deflate")
    assert STATIC_TABLE[60] == ("www-authenticate", "")


def test_old_entries_make_room_for_new_ones() -> None:
    one = decoder()
    for number in range(60):
        one.decode(b"\x40" + encode((f"name-{number:03}", "v" * 60))[1:])
    newest = one.decode(b"\xbe")
    assert newest == (("name-059", "v" * 60),)
    held = 4096 // (8 + 60 + 32)
    assert one.decode(bytes((0x80 | 61 + held,))) == ((f"name-{60 - held:03}", "v" * 60),)
    with pytest.raises(HeaderError, match=f"header {62 + held} does not exist"):
        one.decode(bytes((0x80 | 62 + held,)))


def test_a_block_that_was_remembered_is_forgotten_when_the_table_changes() -> None:
    one = decoder()
    one.decode(b"\x40\x01a\x01b")
    assert one.decode(b"\xbe") == (("a", "b"),)
    assert one.decode(b"\xbe") == (("a", "b"),)
    one.decode(b"\x40\x01c\x01d")
    assert one.decode(b"\xbe") == (("c", "d"),)


def test_a_table_of_no_size_holds_nothing() -> None:
    one = decoder()
    one.decode(b"\x20\x40\x01a\x01b")
    with pytest.raises(HeaderError, match="header 62 does not exist"):
        one.decode(b"\xbe")


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (b"\x80", "header 0 does not exist"),
        (b"\xbe", "header 62 does not exist"),
        (b"\xff", "ends too early"),
        (b"\x00", "ends too early"),
        (b"\x00\x05ab", "ends within a text"),
        (b"\x00\x01a\x7f\xff\xff\xff\xff\x7f", "number in a header block is too large"),
        (b"\x00\x01a\x7f\x80\x80\x80\x80\x80\x80\x01", "number in a header block is too large"),
        (b"\x3f\xe2\x1f", "a table of 4097 bytes; at most 4096 are allowed"),
        (b"\x20\x3f\xe1\x1f\x20\x82", "more than 2 table sizes"),
        (b"\x82\x20", "a table size comes after a header"),
        (b"\x00\x01a\x81\x00", "not filled up with ones"),
        (b"\x00\x01a\x82\x1f\xff", "not filled up with ones"),
        (b"\x00\x01a\x84\xff\xff\xff\xff", "holds its end mark"),
    ],
)
def test_a_block_that_cannot_be_read_is_refused(block: bytes, says: str) -> None:
    with pytest.raises(HeaderError, match=says):
        decoder().decode(block)


def test_headers_over_the_bound_are_refused_however_small_their_block() -> None:
    one = decoder(max_bytes=5000)
    one.decode(b"\x40" + encode(("a", "v" * 1000))[1:])
    with pytest.raises(HeadersTooLarge, match="more than 5000 bytes"):
        one.decode(b"\xbe" * 5)
    with pytest.raises(HeaderError, match="more than 20000 bytes"):
        one.decode(b"\xbe" * 20)
    with pytest.raises(HeaderError, match="block of more than 20000 bytes"):
        one.decode(bytes(20_001))


def test_headers_over_the_bound_leave_the_table_in_step() -> None:
    one = decoder(max_bytes=1000)
    with pytest.raises(HeadersTooLarge):
        one.decode(encode(("a", "v" * 1000)) + b"\x40\x01b\x01c")
    assert one.decode(b"\xbe") == (("b", "c"),)


def test_every_symbol_unpacks() -> None:
    """Each symbol's code from the RFC's lengths, ones after it up to a whole byte, against the decoder."""
    code, length = 0, 0
    for symbol in sorted(range(257), key=lambda symbol: (_LENGTHS[symbol], symbol)):
        code, length = code << (_LENGTHS[symbol] - length), _LENGTHS[symbol]
        if symbol < 256:
            fill = -2 * length % 8
            packed = ((code << length | code) << fill | (1 << fill) - 1).to_bytes((2 * length + fill) // 8, "big")
            assert decoder().decode(b"\x00\x01a" + bytes((0x80 | len(packed),)) + packed) == (("a", chr(symbol) * 2),)
        code += 1


def test_a_long_packed_text_is_read_in_little_time() -> None:
    one = decoder(max_bytes=1 << 20)
    block = b"\x00\x01a\xff" + (100_000 - 127 & 127 | 128).to_bytes() + (100_000 - 127 >> 7 & 127 | 128).to_bytes()
    block += (100_000 - 127 >> 14).to_bytes() + bytes(100_000)
    with counted() as effort:
        assert one.decode(block) == (("a", "0" * 160_000),)
    assert effort.lines <= 6 * 100_000, "some lines a byte"
