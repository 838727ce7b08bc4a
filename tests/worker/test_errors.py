import pytest

from worker.errors import first_line


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("sizes differ\nlong story"), "sizes differ"),
        (RuntimeError("\n  first\nsecond"), "first"),
        (NotImplementedError(), "NotImplementedError"),
        (RuntimeError(" \n"), "RuntimeError"),
    ],
)
def test_any_error_is_told_in_a_line(error: Exception, says: str) -> None:
    assert first_line(error) == says
