import logging

import pytest

from worker.sparing_log import EVERY_S, SparingLog


def test_the_first_failure_is_told_and_then_one_in_a_while_with_the_number_between(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = SparingLog(logging.getLogger("a test"), "it failed")
    for number in range(1000):
        log.failed(ValueError(f"number {number}"), now=number / 1000)
    assert [record.message for record in caplog.records] == ["it failed"]
    log.failed(ValueError("later"), now=EVERY_S + 0.5)
    assert caplog.records[1].message == "it failed (999 times more since this was last told)"
    assert "number 0" in caplog.text
    assert "later" in caplog.text
    assert "number 7" not in caplog.text
