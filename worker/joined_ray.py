"""A Ray cluster that runs already, joined for a while."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import ray
from ray.exceptions import RayError

from worker.errors import ShardlineError
from worker.local_ray import own_sigterm, ray_environment

WITHIN_S: Final = 5.0


class RayNotJoined(ShardlineError):
    """There is no Ray cluster at the address, or it does not let this process in."""

    code = 14


def check_reachable(address: str) -> None:
    """Ray itself tries for minutes. Addresses that are no HOST:PORT are left to it.

    Raises:
        RayNotJoined: nobody listens there.
    """
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), WITHIN_S):
            pass
    except (OSError, OverflowError) as error:
        raise RayNotJoined(
            f"cannot join the Ray cluster at {address}: {error}; is `ray start --head` running there?"
        ) from error


@contextlib.contextmanager
def joined_ray(address: str, *, namespace: str | None = None) -> Iterator[None]:
    """The cluster at `address` ("auto": the one of this machine), of which this process is a driver.

    Raises:
        RayNotJoined: it cannot be joined.
    """
    check_reachable(address)
    with ray_environment({}):
        try:
            with own_sigterm():
                ray.init(address=address, namespace=namespace, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError, RayError) as error:
            raise RayNotJoined(f"cannot join the Ray cluster at {address}: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()
