"""`python -m gateway`: clients on one side, the cluster on the other."""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from gateway.flags import MESSAGE_BYTES, host_port, seconds
from gateway.parent import die_with_parent
from gateway.settings import FROZEN_S, LOG_FORMAT, GatewaySettings, ServerLimits
from gateway.supervisor import StartError, run

LARGE_AT_ONCE = 8
"""So many of the largest requests may be on their way in, where that is more than the default lets in."""
PARSED_PER_S = 64 << 20
"""A request keeps the event loop while its pieces are joined and parsed; measured at rest, of 1 GiB: 440 MiB a second.
Where it is compressed, it is unpacked in a thread before.
"""


def parse(arguments: list[str]) -> tuple[GatewaySettings, bool]:
    """The settings, and whether to die with the parent."""
    bounds = ServerLimits()
    parser = argparse.ArgumentParser(
        prog="python -m gateway", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--control", type=Path, required=True, help="JSON file with the controller's address and token")
    parser.add_argument(
        "--listen", type=host_port("host:port"), default="127.0.0.1:8001", help="host:port; port 0 takes a free one"
    )
    parser.add_argument("--processes", type=_positive, default=1, help="processes that share the port")
    parser.add_argument("--ready-file", type=Path, help="written, with the address, once every process listens")
    parser.add_argument("--notice-s", type=seconds, default=2.0, help="from SIGTERM to no new calls, seconds")
    parser.add_argument("--finish-s", type=seconds, default=30.0, help="then for the calls at work, seconds")
    parser.add_argument(
        "--frozen-s",
        type=seconds,
        default=FROZEN_S,
        help="a process that stands still for so long is replaced, seconds",
    )
    parser.add_argument(
        "--max-message-bytes", type=MESSAGE_BYTES, default=bounds.max_message_bytes, help="of one request"
    )
    parser.add_argument("--max-connections", type=_positive, default=bounds.max_connections, help="of one process")
    parser.add_argument("--max-streams", type=_positive, default=bounds.max_streams, help="calls on one connection")
    parser.add_argument("--max-calls", type=_positive, default=bounds.max_calls, help="calls in one process")
    parser.add_argument("--log-level", default="WARNING", choices=("DEBUG", "INFO", "WARNING", "ERROR"), help=" ")
    parser.add_argument("--die-with-parent", action="store_true", help="drain when the starting thread ends")
    given = parser.parse_args(arguments)
    limits = ServerLimits(
        max_message_bytes=given.max_message_bytes,
        max_connections=given.max_connections,
        max_streams=given.max_streams,
        max_calls=given.max_calls,
        max_receiving_bytes=max(bounds.max_receiving_bytes, LARGE_AT_ONCE * given.max_message_bytes),
    )
    settings = GatewaySettings(
        listen=given.listen,
        processes=given.processes,
        control_file=given.control,
        ready_file=given.ready_file,
        notice_s=given.notice_s,
        finish_s=given.finish_s,
        log_level=given.log_level,
        limits=limits,
        frozen_s=max(given.frozen_s, given.max_message_bytes / PARSED_PER_S),
    )
    return settings, given.die_with_parent


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main() -> int:
    parent = os.getppid()
    settings, dies_with_parent = parse(sys.argv[1:])
    logging.basicConfig(level=settings.log_level, format=LOG_FORMAT)
    if dies_with_parent:
        die_with_parent(parent)
    try:
        return 0 if asyncio.run(run(settings)) else 1
    except (StartError, OSError) as error:
        sys.stderr.write(f"gateway: cannot serve on {settings.listen}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
