"""Memory is measured in processes of their own; one that dies there is told, and not waited for."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from compressor.profiling.resident import resident_bytes
from worker.errors import Internal


def measuring() -> Iterator[psutil.Process]:
    """The processes that load a shard now: each is below one with the same command."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            command, parent = process.cmdline(), process.parent()
            if "compressor.profiling.resident" in command and parent is not None and parent.cmdline() == command:
                yield process


def test_a_larger_batch_takes_more(toy_folder: Path) -> None:
    small, large = (resident_bytes([toy_folder], rows, 16)[0] for rows in (1, 200_000))
    assert 0 < small.loaded <= small.ran < large.ran


def test_a_process_that_dies_while_it_is_measured_is_told_at_once(toy_folder: Path) -> None:
    told: list[str] = []

    def measure() -> None:
        with pytest.raises(Internal) as raised:
            resident_bytes([toy_folder], 400_000, 16)
        told.append(str(raised.value))

    thread = threading.Thread(target=measure)
    thread.start()
    killed = 0
    while thread.is_alive():
        thread.join(0.01)
        for process in measuring():
            process.kill()
            killed += 1
    assert killed
    assert "terminated abruptly" in told[0]
