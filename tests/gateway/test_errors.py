import grpc
import pytest

from gateway.errors import MAX_MESSAGE_BYTES, quoted, shortened, status_of
from worker import errors

KINDS = [
    (errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.TooLarge, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.Cancelled, grpc.StatusCode.CANCELLED),
    (errors.Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (errors.Unsupported, grpc.StatusCode.UNIMPLEMENTED),
    (errors.Internal, grpc.StatusCode.INTERNAL),
]


@pytest.mark.parametrize(("kind", "status"), KINDS)
def test_our_errors_keep_their_code_and_message(kind: type[errors.ShardlineError], status: grpc.StatusCode) -> None:
    assert status_of(kind("why")) == (status, "why")


def test_an_error_that_nobody_foresaw_is_logged_and_told_without_details(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise KeyError("/a/secret/path")
    except KeyError as error:
        status, message = status_of(error)
    assert (status, message) == (
        grpc.StatusCode.INTERNAL,
        "the gateway failed on this request; its log says why",
    )
    assert "/a/secret/path" in caplog.text
    assert "Traceback" in caplog.text


def test_a_message_is_cut_where_it_would_not_fit_a_status() -> None:
    for text in ("x" * 5000, "\u00e9" * 5000, "\U0001f600" * 5000, "\ud800" * 5000):
        cut = shortened(text)
        assert len(cut.encode()) <= MAX_MESSAGE_BYTES
        assert cut.endswith("...")
    assert shortened("short") == "short"


def test_a_quoted_name_is_one_short_line() -> None:
    assert quoted("a\nb\0") == r"'a\nb\x00'"
    assert len(quoted("n" * 10_000)) == 82
