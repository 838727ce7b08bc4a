"""What controllers left in Ray: workers, found by their names, and the placement groups that hold their room."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import ray
import ray._private.state
import ray.util
from ray.util.placement_group import PlacementGroup

from worker.errors import Unavailable

logger = logging.getLogger(__name__)

PREFIX: Final = "worker"
NO_PROCESS_YET: Final = ("DEPENDENCIES_UNREADY", "PENDING_CREATION")
"""What Ray calls an actor that it has yet to start."""


@dataclass(frozen=True, slots=True)
class Found:
    """name: of the actor and of its group. lives: it has a process; else it waits for room, say.

    node: Ray's id of the one where its room is; empty: it has none yet.
    """

    name: str
    handle: Any
    lives: bool
    group: PlacementGroup | None
    node: str

    @property
    def run(self) -> str:
        return self.name.split("/")[1]

    @property
    def replica(self) -> str:
        return self.name.split("/", 2)[2]


def found_workers(namespace: str) -> list[Found]:
    """Every worker of any run. Raises Unavailable where Ray lists one and does not tell of it: it may well live."""
    found: list[Found] = []
    unknown: set[str] = set()
    for name in _names(namespace):
        try:
            handle: Any = ray.get_actor(name, namespace)
        except ValueError:  # it died between the two calls, or Ray cannot tell
            unknown.add(name)
            continue
        state = ray._private.state.actors(handle._actor_id.hex()).get("State")
        if state is None:
            unknown.add(name)
            continue
        group = _group_named(name)
        found.append(Found(name, handle, state not in NO_PROCESS_YET, group, _node_of(group) if group else ""))
    if unknown and (listed := unknown.intersection(_names(namespace))):
        raise Unavailable(f"Ray lists {', '.join(sorted(listed))}, and does not tell more of it")
    return found


def free_left_groups(kept: Collection[str]) -> None:
    """Groups whose worker never came to be, or is gone, hold room for nobody."""
    for described in ray.util.placement_group_table().values():
        name = described["name"]
        if name.startswith(f"{PREFIX}/") and name not in kept and described["state"] != "REMOVED":
            group = _group_named(name)
            if group is not None:
                logger.warning("freeing the room of %s, which is gone", name)
                ray.util.remove_placement_group(group)


def _names(namespace: str) -> list[str]:
    actors: Any = ray.util.list_named_actors(all_namespaces=True)
    return [one["name"] for one in actors if one["namespace"] == namespace and one["name"].startswith(f"{PREFIX}/")]


def _group_named(name: str) -> PlacementGroup | None:
    try:
        group: PlacementGroup = ray.util.get_placement_group(name)
    except ValueError:
        return None
    return group


def _node_of(group: PlacementGroup) -> str:
    described = ray.util.placement_group_table(group)
    return next(iter(described["bundles_to_node_id"].values()), "") if described.get("state") == "CREATED" else ""
