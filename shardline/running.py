"""What is done to a running `serve` from another terminal: found through its state dir, scaled, stopped."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.control_client import ControlClient
from cluster.state import Owner, StateDir, StateError
from protos import control_pb2
from shardline.exits import NotServing
from worker.errors import NotFound, ShardlineError, Unavailable

POLL_S = 0.2


def answers(model: control_pb2.ModelStatus) -> bool:
    """Whether requests are answered: it is ready, or it sleeps, and the next request wakes it."""
    asleep = bool(model.stages) and all(stage.max and not stage.desired for stage in model.stages)
    return model.ready or asleep


class NotInTime(ShardlineError):
    """What was waited for did not come about in time."""


def owner_of(folder: Path) -> Owner:
    """The living `serve` of the state dir. Raises NotServing."""
    owner = StateDir(folder).owner() if folder.is_dir() else None
    if owner is None:
        raise NotServing(f"nothing serves for the state dir {folder}; start it with `shardline serve FOLDER`")
    return owner


def gateway_of(folder: Path) -> str:
    """host:port of the gateway."""
    return owner_of(folder).listen


@contextlib.contextmanager
def controller_of(folder: Path) -> Iterator[ControlClient]:
    """The controller of the state dir: of a living serve, or of one that was killed and left its cluster running."""
    if not folder.is_dir():
        raise NotServing(f"nothing serves for the state dir {folder}; start it with `shardline serve FOLDER`")
    state_dir = StateDir(folder)
    try:
        control = state_dir.read_control()
    except StateError as error:
        owner_of(folder)
        raise Unavailable("the cluster is being started; try again in a moment") from error
    try:
        with ControlClient(control) as client:
            yield client
    except Unavailable:
        owner_of(folder)
        raise


def scale(folder: Path, model: str, stage: int | None, replicas: int, *, wait_s: float) -> int:
    with controller_of(folder) as client:
        client.scale(model, stage, replicas)
        until = time.monotonic() + wait_s
        while wait_s and not _is_so(status := client.status(), model, stage, replicas):
            if time.monotonic() > until:
                why = "; ".join(served.reason for served in status.models if served.model == model and served.reason)
                raise NotInTime(f"{model} is not there yet after {wait_s:g} s: {why or 'see `shardline status`'}")
            time.sleep(POLL_S)
    return 0


def _is_so(status: control_pb2.ClusterStatus, model: str, stage: int | None, replicas: int) -> bool:
    stages = [
        found
        for served in status.models
        if served.model == model
        for found in served.stages
        if stage in (None, found.stage)
    ]
    if not stages:
        raise NotFound(f"{model} is not served")
    return all([replica.state for replica in found.replicas] == ["ready"] * replicas for found in stages)


def stop(folder: Path, within_s: float) -> int:
    """Asks the serve to drain and end, and waits for it; drains what it leaves running, or left when it was killed."""
    state_dir = StateDir(folder) if folder.is_dir() else None
    owner = state_dir.owner() if state_dir else None
    if state_dir is None or owner is None:
        _stop_controller(folder, within_s)
        return 0
    os.kill(owner.pid, signal.SIGTERM)
    sys.stderr.write(f"draining process {owner.pid}\n")
    until = time.monotonic() + within_s
    while (now := state_dir.owner()) is not None and now.pid == owner.pid:  # another: somebody started it again
        if time.monotonic() > until:
            raise NotInTime(
                f"process {owner.pid} still drains after {within_s:g} s; kill -TERM {owner.pid} again forces it"
            )
        time.sleep(POLL_S)
    if owner.leaves:
        sys.stderr.write("draining the workers\n")
        _stop_controller(folder, max(1.0, until - time.monotonic()))
    return 0


def _stop_controller(folder: Path, within_s: float) -> None:
    """Where no serve does. Raises NotServing."""
    try:
        with controller_of(folder) as client:
            client.stop(within_s)
    except Unavailable as error:
        raise NotServing(f"nothing serves for the state dir {folder}") from error
