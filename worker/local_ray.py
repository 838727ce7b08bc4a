"""A Ray of this machine alone: started with its own token, ended with its context, and nothing of it left behind."""

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import psutil
import ray

from worker.errors import ShardlineError
from worker.ray_token import ray_token

logger = logging.getLogger(__name__)

TRIES: Final = 2
"""Ray gives its processes 30 s to come up. On a machine that was busy just then, the next try finds it less so."""
REMOVE_WITHIN_S: Final = 5.0


class RayNotStarted(ShardlineError):
    """Ray's processes did not come up."""

    code = 14


@contextlib.contextmanager
def local_ray(
    scratch: Path,
    *,
    cpus: int | None,
    object_store_bytes: int,
    namespace: str | None = None,
    niceness: int | None = None,
) -> Iterator[None]:
    """A Ray cluster with `cpus` CPUs (None: all of the machine's), of which this process is the driver.

    Its processes listen on the machine's address; its token authentication keeps others out. `scratch`: an empty folder
    for what they write, with a short path (their sockets lie there); it is removed in the end. `niceness`: of its
    workers; None: Ray's usual, 15.

    Raises:
        RayNotStarted: it did not come up, although it was tried `TRIES` times, or this process has a Ray already.
    """
    try:
        nice = {} if niceness is None else {"RAY_worker_niceness": str(niceness)}
        with ray_environment({"RAY_AUTH_TOKEN": ray_token(), **nice}):
            _start(scratch, cpus, object_store_bytes, namespace)
            try:
                yield
            finally:
                ray.shutdown()
    finally:
        _remove(scratch)


def _start(scratch: Path, cpus: int | None, object_store_bytes: int, namespace: str | None) -> None:
    if ray.is_initialized():
        raise RayNotStarted("this process is connected to a Ray already; end that first")
    mine = psutil.Process()
    for left in reversed(range(TRIES)):
        before = set(mine.children(recursive=True))
        try:
            with own_sigterm():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    namespace=namespace,
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                    object_store_memory=object_store_bytes,
                    _temp_dir=str(scratch),
                )
        except BaseException as error:  # Ray raises plain Exception where its processes do not come up in time
            ray.shutdown()
            _end(set(mine.children(recursive=True)) - before)  # Ray forgets those of a node that did not come up
            if not isinstance(error, Exception):
                raise
            if not left:
                raise RayNotStarted(
                    f"Ray did not start on this machine: {error}; try again when it is less busy"
                ) from error
            logger.warning("Ray did not start (%s); trying again", error)
        else:
            return


def _end(processes: set[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=REMOVE_WITHIN_S)


def _remove(folder: Path) -> None:
    """Tries again for a moment: Ray's last processes may still write while they end."""
    until = time.monotonic() + REMOVE_WITHIN_S
    shutil.rmtree(folder, ignore_errors=True)
    while folder.exists():
        if time.monotonic() > until:
            logger.warning("%s: cannot be removed; remove it when Ray's last processes have ended", folder)
            return
        time.sleep(0.1)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def own_sigterm() -> Iterator[None]:
    """For `ray.init`: where this process handles SIGTERM, it does so afterwards as well, and not Ray's handler."""
    before = signal.getsignal(signal.SIGTERM)
    mine = threading.current_thread() is threading.main_thread() and callable(before)
    try:
        yield
    except SystemExit:  # of Ray's handler: the signal came meanwhile
        if mine:
            signal.signal(signal.SIGTERM, before)
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        if mine:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def ray_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets what Ray reads from the environment, where the user set nothing; takes it back, with what Ray added."""
    before = dict(os.environ)
    told = {"RAY_USAGE_STATS_ENABLED": "0", **values}
    os.environ.update({name: value for name, value in told.items() if name not in before})
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("RAY_") and name not in before]:
            del os.environ[name]
