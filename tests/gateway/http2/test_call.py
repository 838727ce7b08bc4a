import pytest

from gateway.errors import STATUS_BY_CODE
from gateway.http2.call import read_head
from worker.http2.hpack import HeaderDecoder
from worker.http2.status import status_block

GOOD = ((":method", "POST"), (":path", "/a.B/C"), ("content-type", "application/grpc+proto"))


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("5S", 5.0), ("1H", 3600.0), ("2M", 120.0), ("250m", 0.25), ("7u", 7e-6), ("9n", 9e-9), ("99999999S", 99999999.0)],
)
def test_a_timeout_is_read_in_its_unit(given: str, seconds: float) -> None:
    assert read_head((*GOOD, ("grpc-timeout", given))).timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize("given", ["", "5", "S", "-1S", "123456789S", "1.5S", "5s", "5S "])
def test_a_timeout_that_cannot_be_read_is_a_fault(given: str) -> None:
    assert "grpc-timeout is at most eight digits and a unit" in read_head((*GOOD, ("grpc-timeout", given))).fault


def test_a_good_head_has_no_fault_and_no_timeout() -> None:
    head = read_head(GOOD)
    assert (head.path, head.timeout_s, head.encoding, head.fault) == ("/a.B/C", None, "identity", "")


def test_a_statuss_message_travels_percent_encoded() -> None:
    block = status_block(STATUS_BY_CODE[5], "no 100% \u00e9\n")
    headers = HeaderDecoder(1000, dict).decode(block)
    assert headers == {"grpc-status": "5", "grpc-message": "no 100%25 %C3%A9%0A"}
