"""`python -m gateway`, as an operator and as the command line start it."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from gateway.__main__ import parse
from gateway.settings import ServerLimits
from tests.chaos.load import RETRY
from tests.gateway.backend import Serve, echo, model, table, worker
from tests.gateway.controller import FakeController, controller
from tests.gateway.gate import Gate
from tests.gateway.stock import ROWS, InferenceServerException, channel, client, connected, infer, infer_input


@dataclass
class Started:
    process: asyncio.subprocess.Process
    address: str
    controller: FakeController

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    async def ended(self) -> int:
        async with asyncio.timeout(60):
            return await self.process.wait()


@asynccontextmanager
async def started(folder: Path, *options: str, serve: Serve = echo) -> AsyncIterator[Started]:
    """A gateway of processes of its own, each of which has the controller's table in force."""
    async with worker(serve) as address, controller() as one, AsyncExitStack() as stack:
        one.push(table(model(replicas=[address])))
        ready_file = folder / "ready.json"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "--listen", "127.0.0.1:0", "--notice-s", "0", "--die-with-parent"),
            *("--control", str(one.write_control_file(folder)), "--ready-file", str(ready_file), *options),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        stack.push_async_callback(_kill, process)
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert b"gateway listening on " in await process.stdout.readline()
        told = json.loads(ready_file.read_text())
        assert told["pid"] == process.pid
        await one.until_in_force(len(psutil.Process(process.pid).children()))
        yield Started(process, told["address"], one)


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


async def test_two_processes_share_a_port_and_sum_their_statistics(tmp_path: Path) -> None:
    async with started(tmp_path, "--processes", "2") as one, AsyncExitStack() as stack:
        assert len(one.children()) == 2
        raws = [await stack.enter_async_context(channel(one.address)) for _ in range(16)]
        await asyncio.gather(*(infer(raw) for raw in raws))
        served_by = [child for child in one.children() if _connections(child, one.address)]
        assert len(served_by) == 2
        for _ in range(4):
            async with connected(one.address) as client:
                (stats,) = (await client.get_inference_statistics("echo")).model_stats
                assert stats.inference_stats.success.count == 16
        one.process.send_signal(signal.SIGTERM)
        assert await one.ended() == 0


def _connections(process: psutil.Process, address: str) -> int:
    port = int(address.rpartition(":")[2])
    return sum(
        connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == port
        for connection in process.net_connections()
    )


async def test_a_process_that_dies_is_started_again_and_the_other_serves_meanwhile(tmp_path: Path) -> None:
    async with started(tmp_path, "--processes", "2") as one:
        victim = one.children()[0]
        victim.kill()
        await one.controller.until_in_force(3)
        living = one.children()
        assert len(living) == 2
        assert victim.pid not in {child.pid for child in living}
        async with connected(one.address) as client:
            np.testing.assert_array_equal((await client.infer("echo", [infer_input()])).as_numpy("x"), ROWS)
        one.process.send_signal(signal.SIGTERM)
        assert await one.ended() == 0


async def test_a_process_that_stands_still_is_replaced_and_its_clients_send_again(tmp_path: Path) -> None:
    gate = Gate()
    retry = [("grpc.service_config", json.dumps(RETRY))]
    async with started(tmp_path, "--processes", "2", "--frozen-s", "4", serve=gate.serve) as one:
        sender = client.InferenceServerClient(one.address, channel_args=retry)
        held = asyncio.create_task(sender.infer("echo", [infer_input()]))
        await gate.until(entered=1)
        frozen, _, _ = (await one.controller.until_held()).partition("-")
        os.kill(int(frozen), signal.SIGSTOP)
        await gate.until(entered=2)
        gate.open()
        np.testing.assert_array_equal((await held).as_numpy("x"), ROWS)
        await sender.close()
        await one.controller.until_in_force(3)
        assert int(frozen) not in {child.pid for child in one.children()}
        one.process.send_signal(signal.SIGTERM)
        assert await one.ended() == 0
        assert one.process.stderr is not None
        assert f"process {frozen} has not moved for 4 s: killed" in (await one.process.stderr.read()).decode()


@pytest.mark.parametrize("again", [True, False])
async def test_what_a_process_held_when_it_died_is_for_its_clients_to_send_again(tmp_path: Path, again: bool) -> None:
    gate = Gate()
    more = [("grpc.service_config", json.dumps(RETRY))] if again else []
    async with started(tmp_path, "--processes", "2", serve=gate.serve) as one:
        sender = client.InferenceServerClient(one.address, channel_args=more)
        held = asyncio.create_task(sender.infer("echo", [infer_input()]))
        await gate.until(entered=1)
        holder, _, _ = (await one.controller.until_held()).partition("-")
        psutil.Process(int(holder)).kill()
        if again:
            await gate.until(entered=2)
            gate.open()
            np.testing.assert_array_equal((await held).as_numpy("x"), ROWS)
        else:
            with pytest.raises(InferenceServerException) as caught:
                await held
            assert caught.value.status() == "StatusCode.UNAVAILABLE"
        await sender.close()


async def test_each_process_has_a_session_of_its_own(tmp_path: Path) -> None:
    async with started(tmp_path, "--processes", "2") as one:
        assert [os.getsid(child.pid) for child in one.children()] == [child.pid for child in one.children()]
        one.process.send_signal(signal.SIGTERM)
        assert await one.ended() == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_loses_nothing(tmp_path: Path, how: signal.Signals) -> None:
    gate = Gate()
    async with started(tmp_path, serve=gate.serve) as one, connected(one.address) as client:
        held = [asyncio.create_task(client.infer("echo", [infer_input()])) for _ in range(8)]
        await gate.until(entered=8)
        one.process.send_signal(how)
        await _refuses_connections(one.address)
        assert one.process.returncode is None
        gate.open()
        for result in await asyncio.gather(*held):
            np.testing.assert_array_equal(result.as_numpy("x"), ROWS)
        assert await one.ended() == 0


async def _refuses_connections(address: str) -> None:
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionError:
                return
            writer.close()


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    gate = Gate()
    async with started(tmp_path, serve=gate.serve) as one, connected(one.address) as client:
        held = asyncio.create_task(client.infer("echo", [infer_input()]))
        await gate.until(entered=1)
        one.process.send_signal(signal.SIGTERM)
        await _refuses_connections(one.address)
        one.process.send_signal(signal.SIGTERM)
        assert await one.ended() == 1
        with pytest.raises(InferenceServerException) as caught:
            await held
        assert caught.value.status() == "StatusCode.UNAVAILABLE"


async def test_it_serves_on_while_the_controller_is_away(tmp_path: Path) -> None:
    async with started(tmp_path) as one, connected(one.address) as client:
        await one.controller.stop()
        for _ in range(3):
            np.testing.assert_array_equal((await client.infer("echo", [infer_input()])).as_numpy("x"), ROWS)


async def test_its_processes_end_when_it_is_killed(tmp_path: Path) -> None:
    async with started(tmp_path, "--processes", "2") as one:
        children = one.children()
        one.process.kill()
        gone, alive = await asyncio.to_thread(psutil.wait_procs, children, 60)
        assert len(gone) == 2
        assert not alive


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "gateway", *sys.argv[1:]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""


async def test_it_ends_when_its_parent_does(tmp_path: Path) -> None:
    async with controller() as one:
        parent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PARENT, "--listen", "127.0.0.1:0", "--notice-s", "0", "--die-with-parent"),
            *("--control", str(one.write_control_file(tmp_path))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert parent.stdout is not None
        gateway = psutil.Process(int(await asyncio.wait_for(parent.stdout.readline(), 60)))
        family = [gateway, *gateway.children()]
        assert len(family) == 2
        parent.kill()
        await parent.wait()
        _, alive = await asyncio.to_thread(psutil.wait_procs, family, 60)
        assert not alive


async def test_a_port_that_is_taken_is_told_and_not_shared_with_another_gateway(tmp_path: Path) -> None:
    async with started(tmp_path) as one:
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "--listen", one.address, "--control", str(tmp_path / "control.json")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await asyncio.wait_for(second.communicate(), 60)
        assert second.returncode == 1
        assert f"gateway: cannot serve on {one.address}: ".encode() in errors
        assert b"Address already in use" in errors
        assert b"Traceback" not in errors


async def test_processes_that_cannot_start_end_the_gateway(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "--listen", "127.0.0.1:0", "--control", str(tmp_path / "control.json")),
        "--processes=2",
        env={**os.environ, "PYTHONPATH": str(_broken_uvloop(tmp_path))},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert b"a gateway process ended before it listened; its messages are above" in errors


def _broken_uvloop(folder: Path) -> Path:
    (folder / "uvloop.py").write_text("raise ImportError('no event loop today')\n")
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--control"),
        (["--control", "c", "--listen", "8001"], "'8001' is not host:port"),
        (["--control", "c", "--listen", "127.0.0.1:99999"], "is not host:port"),
        (["--control", "c", "--processes", "0"], "'0' is not a whole number above 0"),
        (["--control", "c", "--max-message-bytes", "2G"], "'2G' is not a whole number from 1 to 1073741824"),
        (["--control", "c", "--max-message-bytes", str((1 << 30) + 1)], "is not a whole number from 1 to 1073741824"),
        (["--control", "c", "--notice-s", "-1"], "'-1' is not a number of seconds"),
        (["--control", "c", "--finish-s", "soon"], "'soon' is not a number of seconds"),
    ],
)
def test_a_bad_option_is_refused_by_name(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert says in capsys.readouterr().err


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    settings, dies_with_parent = parse(["--control", "c"])
    assert settings.listen == "127.0.0.1:8001"
    assert not dies_with_parent
    assert parse(["--control", "c", "--listen", "[::]:0"])[0].listen == "[::]:0"


def test_a_process_that_parses_the_largest_message_is_not_taken_for_frozen() -> None:
    given = ["--control", "c", "--frozen-s", "5"]
    assert parse(given)[0].frozen_s == 5
    assert parse([*given, "--max-message-bytes", str(1 << 30)])[0].frozen_s == 16


def test_a_connection_may_send_the_largest_message_that_is_allowed() -> None:
    """A connection alone gets half of what may be arriving (`gateway.http2.calls`)."""
    usual = ServerLimits()
    for most in (1000, usual.max_message_bytes, 1 << 30):
        limits = parse(["--control", "c", "--max-message-bytes", str(most)])[0].limits
        assert limits.max_message_bytes == most
        assert limits.max_receiving_bytes >= max(4 * most, usual.max_receiving_bytes)


async def test_it_listens_on_ipv6_too(tmp_path: Path) -> None:
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    async with started(tmp_path, "--listen", "[::1]:0") as one, connected(one.address) as client:
        assert one.address.startswith("[::1]:")
        assert await client.is_server_live()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
