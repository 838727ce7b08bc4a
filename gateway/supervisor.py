"""Keeps the gateway's processes alive behind one port, and drains them together.

The processes share the port by SO_REUSEPORT: the kernel gives each new connection to one of them. The supervisor
holds the port (so that a free one, once picked, stays picked) and never listens on it.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gateway.pulse import LOOK_S, Vigil
from gateway.settings import LISTENING, GatewaySettings, ProcessSettings
from gateway.statistics import Statistics, region_bytes

RESTART_MIN_S: Final = 0.1
RESTART_MAX_S: Final = 10.0
START_S: Final = 60.0
"""Longest that a process may take from its start until it listens."""

logger = logging.getLogger(__name__)


class StartError(Exception):
    """The gateway could not start; the message says why, or points at the process's own."""


class Supervisor:
    def __init__(self, settings: GatewaySettings, address: str, statistics_file: int) -> None:
        self._settings = settings
        self._address = address
        self._statistics_file = statistics_file
        self._statistics = Statistics.shared(statistics_file, settings.processes, 0)
        self._children: dict[int, asyncio.subprocess.Process] = {}
        self._listening: set[int] = set()
        self._stopping = asyncio.Event()
        self._kill_at_s = settings.notice_s + settings.finish_s + 5.0

    async def run(self) -> bool:
        """Returns when every process has ended after `stop`; whether each ended by itself and in order.

        Raises `StartError` where one of the first processes does not come to listen.
        """
        try:
            await self._start_all()
            ends = await asyncio.gather(*(self._keep(process) for process in range(self._settings.processes)))
        finally:
            living = [child for child in self._children.values() if child.returncode is None]
            for child in living:
                child.kill()
            await asyncio.gather(*(child.wait() for child in living))
        return all(ends)

    def stop(self) -> None:
        """Drains every process; called again, ends them at once."""
        self._stopping.set()
        for child in self._children.values():
            if child.returncode is None:
                child.send_signal(signal.SIGTERM)

    async def _start_all(self) -> None:
        listening = await asyncio.gather(*(self._start(process) for process in range(self._settings.processes)))
        if self._stopping.is_set():
            return
        if not all(listening):
            raise StartError("a gateway process ended before it listened; its messages are above")
        if self._settings.ready_file is not None:
            _write_ready_file(self._settings.ready_file, self._address)
        sys.stdout.write(f"gateway listening on {self._address} ({self._settings.processes} processes)\n")
        sys.stdout.flush()

    async def _start(self, process: int) -> bool:
        """Starts one process; whether it came to listen."""
        settings = self._settings
        what = ProcessSettings(
            address=self._address,
            control_file=str(settings.control_file),
            statistics_file=self._statistics_file,
            processes=settings.processes,
            process=process,
            supervisor=os.getpid(),
            notice_s=settings.notice_s,
            finish_s=settings.finish_s,
            log_level=settings.log_level,
            limits=settings.limits,
        )
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.process", what.to_json()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(self._statistics_file,),
            start_new_session=True,  # Linux shares the processor out by sessions: not with what started us (autogroup)
        )
        self._children[process] = child
        self._listening.discard(process)
        if self._stopping.is_set():
            child.kill()  # it began while the others were told to drain
        if child.stdout is None:
            raise StartError("the process has no standard output")
        try:
            async with asyncio.timeout(START_S):
                if await child.stdout.readline() != LISTENING.encode():
                    return False
        except TimeoutError:
            child.kill()
            return False
        self._listening.add(process)
        return True

    async def _keep(self, process: int) -> bool:
        """Starts the process again when it dies or stands still, until `stop`; whether its last end was in order."""
        pause = RESTART_MIN_S
        while True:
            watching = asyncio.create_task(self._watch(process))
            try:
                code = await self._wait(self._children[process])
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            if self._stopping.is_set():
                return code == 0 or process not in self._listening
            logger.error(
                "process %d of %d ended with code %d; starting another", process, self._settings.processes, code
            )
            await self._wait_for_stop(pause)
            if self._stopping.is_set():
                return True
            listens = await self._start(process)
            pause = RESTART_MIN_S if listens else min(2 * pause, RESTART_MAX_S)

    async def _watch(self, process: int) -> None:
        """Kills it where it stands still: it would keep its connections and be given new ones. Until `stop`."""
        child, vigil = self._children[process], Vigil(self._settings.frozen_s)
        while not self._stopping.is_set():
            if vigil.stands_still(self._statistics.beats(process)) and child.returncode is None:
                logger.error("process %d has not moved for %g s: killed", child.pid, self._settings.frozen_s)
                child.kill()
                return
            await self._wait_for_stop(LOOK_S)

    async def _wait(self, child: asyncio.subprocess.Process) -> int:
        """The code that it ends with; it is killed where a drain takes too long."""
        ended = asyncio.ensure_future(child.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await asyncio.wait((ended,), timeout=self._kill_at_s)
            if not ended.done():
                logger.error("process %d did not end within %g s: killed", child.pid, self._kill_at_s)
                child.kill()
            return await ended
        finally:
            stopping.cancel()

    async def _wait_for_stop(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return


@contextmanager
def held_port(listen: str) -> Iterator[str]:
    """Holds the port and yields host:port, the port never 0. Raises OSError where somebody else listens on it."""
    host, _, port = listen.rpartition(":")
    family, kind, protocol, _, where = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    # With SO_REUSEPORT alone a second gateway would quietly take half of the first one's connections.
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(where)
    with socket.socket(family, kind, protocol) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(where)
        yield f"{host}:{held.getsockname()[1]}"


@contextmanager
def statistics_file(processes: int) -> Iterator[int]:
    """Descriptor of a region of memory that the processes share; it is gone with the last of them."""
    file = os.memfd_create("shardline-gateway-statistics")
    try:
        os.truncate(file, region_bytes(processes))
        yield file
    finally:
        os.close(file)


def _write_ready_file(path: Path, address: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"address": address, "pid": os.getpid()}) + "\n")
    temporary.replace(path)


async def run(settings: GatewaySettings) -> bool:
    """A gateway from start to drain. SIGTERM, SIGINT or SIGHUP drains it, the same again ends it at once.

    Returns whether it ended in order. Raises `StartError`, OSError.
    """
    with held_port(settings.listen) as address, statistics_file(settings.processes) as file:
        supervisor = Supervisor(settings, address, file)
        loop = asyncio.get_running_loop()
        asked: set[int] = set()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, _asked_to_end, number, asked, supervisor)
        return await supervisor.run()


def _asked_to_end(number: int, asked: set[int], supervisor: Supervisor) -> None:
    """Ctrl-C, a SIGTERM from who started us and its own end often come together: that is one wish, not three."""
    if not asked or number in asked:
        supervisor.stop()
    asked.add(number)
