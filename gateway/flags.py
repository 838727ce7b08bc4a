"""What a word on the command line must be: types for argparse's options, here and in `shardline`.

Each raises `argparse.ArgumentTypeError`, whose text says what came and what was expected.
"""

import argparse
from collections.abc import Callable
from typing import Final


def host_port(expected: str) -> Callable[[str], str]:
    """host:port, as it came. `expected`: how the error puts it."""

    def read(text: str) -> str:
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
        return text

    return read


def whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return read


MESSAGE_BYTES: Final = whole(1, 1 << 30)
"""Of one request. A frame between gateway and worker carries twice as much."""


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 86400")
    return value
