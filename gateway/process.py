"""One of the gateway's processes, as the supervisor starts it: `python -m gateway.process SETTINGS`.

Writes a line to standard output once it listens. SIGTERM drains it, a second one ends it at once. It drains also when
the supervisor dies, however that dies.
"""

import asyncio
import logging
import os
import signal
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import uvloop

from gateway.descriptors import for_connections, raised
from gateway.parent import die_with_parent
from gateway.pulse import beat_forever
from gateway.server import Gateway
from gateway.settings import LISTENING, LOG_FORMAT, ProcessSettings
from gateway.statistics import Statistics

logger = logging.getLogger(__name__)


async def serve(settings: ProcessSettings) -> None:
    """Serves until SIGTERM, then drains. Raises OSError where the address cannot be had."""
    terminated = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, _terminate, terminated)
    loop.add_signal_handler(signal.SIGHUP, terminated.set)
    wanted, descriptors = settings.limits.max_connections, raised()
    connections = for_connections(wanted, descriptors)
    if connections < wanted:
        logger.warning(
            "%d connections at most, not %d: there are %d file descriptors", connections, wanted, descriptors
        )
    statistics = Statistics.shared(settings.statistics_file, settings.processes, settings.process)
    gateway = Gateway(
        settings.address,
        control_file=Path(settings.control_file),
        statistics=statistics,
        limits=replace(settings.limits, max_connections=connections),
        version=_version(),
    )
    beating = asyncio.create_task(beat_forever(statistics.beat), name="beats")
    try:
        async with gateway:
            sys.stdout.write(LISTENING)
            sys.stdout.flush()
            await terminated.wait()
            logger.info("draining: not ready for %g s, then at most %g s", settings.notice_s, settings.finish_s)
            await gateway.drain(settings.notice_s, settings.finish_s)
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


def _terminate(terminated: asyncio.Event) -> None:
    if terminated.is_set():
        logger.warning("told to end twice: what is in flight is lost")
        os._exit(1)
    terminated.set()


def _version() -> str:
    try:
        return version("shardline")
    except PackageNotFoundError:
        return "0+uninstalled"


def main() -> None:
    settings = ProcessSettings.from_json(sys.argv[1])
    logging.basicConfig(level=settings.log_level, format=LOG_FORMAT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides, and says so by SIGTERM
    die_with_parent(settings.supervisor)
    uvloop.run(serve(settings))


if __name__ == "__main__":
    main()
