"""A real rival, started by a benchmark that is killed."""

import contextlib
import socket
import subprocess
import sys

import pytest

BENCHMARK = """
import signal
{before}
from benchmarks.servers import raw_echo

with raw_echo() as address:
    print(address, flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("before", ["", "signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it"])
def test_a_killed_benchmark_leaves_no_rival_behind(before: str) -> None:
    code = BENCHMARK.format(before=before)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as benchmark:
        try:
            assert benchmark.stdout is not None
            host, _, port = benchmark.stdout.readline().strip().rpartition(":")
            connection = socket.create_connection((host, int(port)), timeout=10)
        finally:
            benchmark.kill()
    with connection, contextlib.suppress(ConnectionResetError):
        while connection.recv(4096):  # its end is the rival's; TimeoutError: the rival goes on
            pass
