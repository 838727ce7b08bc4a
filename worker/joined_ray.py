"""A Ray cluster that runs already, joined for a while."""

import contextlib
from collections.abc import Iterator

import ray
from ray.exceptions import RayError

from worker.errors import ShardlineError
from worker.local_ray import ray_environment


class RayNotJoined(ShardlineError):
    """There is no Ray cluster at the address, or it does not let this process in."""

    code = 14


@contextlib.contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """The cluster at `address` ("auto": the one of this machine), of which this process is a driver.

    Raises:
        RayNotJoined: it cannot be joined.
    """
    with ray_environment({}):
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError, RayError) as error:
            raise RayNotJoined(f"cannot join the Ray cluster at {address}: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()
