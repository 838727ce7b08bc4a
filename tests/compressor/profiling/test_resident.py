"""Memory is measured in processes of their own; one that dies there is told, and not waited for."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from compressor.model import Input, Model
from compressor.package import package
from compressor.profiling import resident
from compressor.profiling.resident import resident_bytes
from tests.shardline.serve_process import alive
from worker.errors import Internal


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x FP32 [batch, 64] → the same, of any number of rows."""
    module = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    model = Model(module, (Input("x", torch.randn(2, 64), ("batch", None)),))
    return package(model, tmp_path_factory.mktemp("rows") / "rows", runtime="eager", stages=(1,))


def measuring() -> Iterator[psutil.Process]:
    """The processes that load a shard now: each is below one with the same command."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            command, parent = process.cmdline(), process.parent()
            if "compressor.profiling.resident" in command and parent is not None and parent.cmdline() == command:
                yield process


def test_a_larger_batch_takes_more(artifact: Path) -> None:
    small, large = (resident_bytes([artifact], rows, 1)[0] for rows in (1, 200_000))
    assert 0 < small.loaded <= small.ran
    assert large.ran > 200_000 * 64 * 4  # what it gives stays for a moment


def told_when(artifact: Path, each: Callable[[psutil.Process], None]) -> str:
    """What a measurement is refused with, where `each` is done again and again to what loads a shard."""
    told: list[str] = []

    def measure() -> None:
        with pytest.raises(Internal) as raised:
            resident_bytes([artifact], 4_000_000, 1)
        told.append(str(raised.value))

    thread = threading.Thread(target=measure)
    thread.start()
    while thread.is_alive():
        thread.join(0.01)
        for process in measuring():
            each(process)
    (words,) = told
    return words


def test_a_process_that_dies_while_it_is_measured_is_told_at_once(artifact: Path) -> None:
    assert "terminated abruptly" in told_when(artifact, psutil.Process.kill)


@pytest.mark.slow
def test_what_takes_too_long_is_ended_with_all_that_it_started(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "WITHIN_S", 20.0)
    stopped: set[psutil.Process] = set()

    def stop(process: psutil.Process) -> None:
        process.suspend()
        stopped.add(process)

    assert told_when(artifact, stop) == "measuring memory took over 20 s"
    assert stopped
    _, left = psutil.wait_procs(stopped, timeout=10)  # a killed process ends a moment later
    assert not alive(left)
