"""A real rival, started by a benchmark that is killed."""

import contextlib
import socket
import subprocess
import sys

BENCHMARK = """
import signal
from benchmarks.servers import raw_echo

with raw_echo() as address:
    print(address, flush=True)
    signal.pause()
"""


def test_a_killed_benchmark_leaves_no_rival_behind() -> None:
    with subprocess.Popen([sys.executable, "-c", BENCHMARK], stdout=subprocess.PIPE, text=True) as benchmark:
        try:
            assert benchmark.stdout is not None
            host, _, port = benchmark.stdout.readline().strip().rpartition(":")
            connection = socket.create_connection((host, int(port)), timeout=10)
        finally:
            benchmark.kill()
    with connection, contextlib.suppress(ConnectionResetError):
        while connection.recv(4096):  # its end is the rival's; TimeoutError: the rival goes on
            pass
