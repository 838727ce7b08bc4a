"""A slow wire between two devices, in user space: each packet that enters one leaves the other later.

`python -m tests.chaos.wire NEAR FAR SECONDS` makes both as TUN devices, prints a line, and carries packets until its
standard input ends. A device that is moved into another network namespace stays at this end of the wire.
"""

import argparse
import fcntl
import os
import selectors
import struct
import sys
import time
from collections import deque
from typing import Final

TUNSETIFF: Final = 0x400454CA
TUN_WITHOUT_HEADER: Final = 0x0001 | 0x1000
PACKET_BYTES: Final = 65_536
QUEUED: Final = 20_000
"""Packets under way in one direction; more are dropped, as every wire does."""


def tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), TUN_WITHOUT_HEADER))
    return device


def carry(devices: tuple[int, int], delay_s: float, until_readable: int) -> None:
    """Blocks until there is something to read at `until_readable`."""
    under_way: dict[int, deque[tuple[float, bytes]]] = {device: deque() for device in devices}
    with selectors.DefaultSelector() as selector:
        selector.register(until_readable, selectors.EVENT_READ)
        for source, target in (devices, devices[::-1]):
            selector.register(source, selectors.EVENT_READ, target)
        while True:
            first = min((queue[0][0] for queue in under_way.values() if queue), default=None)
            for key, _ in selector.select(None if first is None else max(0.0, first - time.monotonic())):
                if key.data is None:
                    return
                queue = under_way[key.data]
                for packet in arrived(key.fd):
                    if len(queue) < QUEUED:
                        queue.append((time.monotonic() + delay_s, packet))
            for target, queue in under_way.items():
                while queue and queue[0][0] <= time.monotonic():
                    deliver(target, queue.popleft()[1])


def arrived(device: int) -> list[bytes]:
    packets: list[bytes] = []
    try:
        while len(packets) < 64:
            packets.append(os.read(device, PACKET_BYTES))
    except BlockingIOError:
        pass  # that was all
    except OSError as error:
        raise RuntimeError(f"the wire's device is down: {error}") from error
    return packets


def deliver(device: int, packet: bytes) -> None:
    try:
        os.write(device, packet)
    except BlockingIOError:
        return  # its queue is full: dropped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("near")
    parser.add_argument("far")
    parser.add_argument("seconds", type=float, help="that a packet takes from one end to the other")
    given = parser.parse_args()
    devices = tun(given.near), tun(given.far)
    print("ready", flush=True)
    os.read(sys.stdin.fileno(), 1)  # the devices are up now
    carry(devices, given.seconds, sys.stdin.fileno())


if __name__ == "__main__":
    main()
