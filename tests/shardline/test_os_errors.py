from pathlib import Path

import pytest

from shardline.os_errors import told


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/proc/sys/kernel/version", "Permission denied; choose a place that you may write to"),
        ("/dev/null/file", "Not a directory; check the path"),
        ("/proc/no-such-folder/file", "No such file or directory; check the path"),
    ],
)
def test_it_says_which_file_why_and_what_to_do(path: str, says: str) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 -- the message is what is tested
        Path(path).write_text("x")
    assert told(caught.value) == f"{path}: {says}, and run the command again"


def test_where_the_error_names_no_file_its_writer_does() -> None:
    with pytest.raises(OSError, match="No space left on device") as caught:
        Path("/dev/full").write_text("x")
    assert told(caught.value, "standard output").startswith("standard output: No space left on device; make room")
    assert told(caught.value).startswith("[Errno 28] No space left on device; make room")


def test_an_error_without_words_is_told_by_its_name() -> None:
    assert told(TimeoutError()) == "TimeoutError"
