"""Starts an embedded Ray or joins a running one, and starts the controller in it. Leaves nothing behind."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.controller_actor import ControllerActor
from cluster.ray_fleet import NAMESPACE
from cluster.ray_store import RayStore, store_name
from cluster.state import State
from worker.errors import ShardlineError
from worker.joined_ray import joined_ray as joined_ray_in
from worker.local_ray import local_ray
from worker.niceness import WORKER

CONTROLLER = "controller"
CONTROLLER_WITHIN_S = 60.0
ASK_WITHIN_S = 5.0
OBJECT_STORE_BYTES = 80 * 2**20
"""Ray's smallest: no tensor ever travels through it."""


class LaunchError(ShardlineError):
    """The cluster could not be started or joined; the message says why and what to do."""


@contextlib.contextmanager
def embedded_ray(state_folder: Path, cpus: int | None = None) -> Iterator[None]:
    """A Ray cluster of this machine alone, with `cpus` CPUs (None: all). Ends with the context, or with this process.

    What Ray's processes write goes to a folder of `state_folder`'s own under the system's temporary one: its sockets'
    paths must be short. Raises RayNotStarted.
    """
    scratch = _scratch(state_folder)
    with local_ray(scratch, cpus=cpus, object_store_bytes=OBJECT_STORE_BYTES, namespace=NAMESPACE, niceness=WORKER):
        yield


def _scratch(state_folder: Path) -> Path:
    """An empty folder. Its name follows from the state dir, so that what a killed `serve` left there is removed."""
    name = hashlib.sha256(str(state_folder).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"shardline-ray-{os.getuid()}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError as error:
        raise LaunchError(f"{folder}: cannot be emptied for Ray; remove it") from error
    return folder


def joined_ray(address: str) -> contextlib.AbstractContextManager[None]:
    """This process as a driver of the Ray cluster at `address`, where the controller is found by its name.

    Raises RayNotJoined.
    """
    return joined_ray_in(address, namespace=NAMESPACE)


class Found(Enum):
    NONE = "none"
    SERVES = "serves"
    STOPS = "stops"
    """It drains its workers, and ends when none is left."""


def find_controller(state_folder: Path) -> Found:
    """The controller of this state dir that lives in the cluster: a `serve` that was killed left it behind.

    Raises LaunchError where another state dir's controller does: one Ray cluster serves for one.
    """
    try:
        controller: Any = ray.get_actor(CONTROLLER, NAMESPACE)
    except ValueError:
        return Found.NONE
    try:
        folder, stops = _wait_for(controller)
    except ActorDiedError:
        return Found.STOPS  # just now; Ray frees its name in a moment
    if Path(folder) != state_folder:
        raise LaunchError(
            f"this Ray cluster already serves for the state dir {folder}; stop that first: "
            f"`shardline stop --state-dir {folder}`"
        )
    return Found.STOPS if stops else Found.SERVES


def start_controller(state_folder: Path, *, in_ray: bool = False) -> None:
    """Starts the controller; it reads what it needs in `state_folder`. Returns when it listens. Raises LaunchError.

    `in_ray`: its state lies in Ray's storage (`keep_in_ray`), so that another node may take it over.
    """
    actor: Any = ray.remote(ControllerActor)
    controller = actor.options(
        name=CONTROLLER,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        num_cpus=0,
        scheduling_strategy=_here(soft=in_ray),
    ).remote(str(state_folder), in_ray)
    try:
        _wait_for(controller)
    except ActorDiedError as error:
        raise LaunchError(f"the controller cannot start: {error}") from error


def restart_controller() -> None:
    """Ends the controller's process, frozen or not; Ray starts another, which finds the workers alive."""
    try:
        ray.kill(ray.get_actor(CONTROLLER, NAMESPACE), no_restart=False)
    except ValueError as error:
        raise LaunchError("the controller's actor is gone from the Ray cluster") from error


def _wait_for(controller: Any) -> tuple[str, bool]:
    """Its state dir and whether it is being stopped, once it listens. Raises ActorDiedError, LaunchError."""
    try:
        folder, _, stops = ray.get(controller.where.remote(), timeout=CONTROLLER_WITHIN_S)
    except GetTimeoutError as error:
        raise LaunchError(f"the controller does not answer within {CONTROLLER_WITHIN_S:g} s") from error
    except ActorDiedError:
        raise
    except (RayActorError, RayTaskError) as error:
        raise LaunchError(f"the controller cannot start: {error}") from error
    return folder, stops


def keep_in_ray(state_folder: Path, state: State) -> None:
    """Puts the state where a controller that is started with `in_ray` looks for it."""
    store = RayStore(store_name(state_folder))
    store.claim()
    store.write_state(state)


def controller_address() -> str:
    """host:port where the controller listens now, on whatever node. Raises LaunchError."""
    try:
        controller: Any = ray.get_actor(CONTROLLER, NAMESPACE)
        return str(ray.get(controller.where.remote(), timeout=ASK_WITHIN_S)[1])
    except (ValueError, GetTimeoutError, RayActorError, RayTaskError) as error:
        raise LaunchError(f"the controller's actor does not answer: {error}") from error


def _here(*, soft: bool) -> NodeAffinitySchedulingStrategy:
    """The controller stays on this node: its state dir and its address do. `soft`: while this node lives."""
    node = ray.get_runtime_context().get_node_id()
    return NodeAffinitySchedulingStrategy(node, soft=soft)
