"""On which node a new replica should be: pure arithmetic. Ray has the last word on room.

Stages that talk to each other sit together, so that a batch crosses no network between them; replicas of one stage sit
apart, so that a node's death leaves each stage somebody.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cluster.fleet import Node
from cluster.world import Stage
from worker.per_stage import MEMORY, MIB, StageSettings

SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Placed:
    """A replica that has, or was given, a node. bundle: what it takes."""

    stage: Stage
    node: str
    bundle: Mapping[str, float]


def choose_node(
    stage: Stage,
    settings: StageSettings,
    nodes: Sequence[Node],
    placed: Sequence[Placed],
    shunned: Collection[str] = (),
) -> str | None:
    """The node's id; None where no node has room now, so that whoever adds nodes sees the demand.

    shunned: nodes where replicas of the stage failed to start; they are taken where there are no others.

    Least of the same stage first, then most of its neighbours, then the fullest that has room: what stays empty can go.
    """
    open_to_it = [
        node
        for node in nodes
        if not node.drained and _has_labels(node, settings) and _fits(settings.bundle, _free(node, placed))
    ]
    if not open_to_it:
        return None
    neighbours = {stage.before, stage.after}

    def badness(node: Node) -> tuple[bool, int, int, float, str]:
        here = [one for one in placed if one.node == node.id]
        return (
            node.id in shunned,
            sum(one.stage == stage for one in here),
            -sum(one.stage in neighbours for one in here),
            _free(node, placed).get("CPU", 0.0),
            node.id,
        )

    return min(open_to_it, key=badness).id


def seat(one: Placed, placed: Sequence[Placed], heads: Collection[str]) -> tuple[int, int]:
    """How well a replica sits: rather alone of its stage, then rather where a node cannot go (`heads`) or others are.

    Who scales down by it keeps replicas of one stage apart, and empties nodes so that they can go.
    """
    here = [other for other in placed if other.node == one.node]
    return -sum(other.stage == one.stage for other in here), len(placed) if one.node in heads else len(here)


def why_nowhere(settings: StageSettings, nodes: Sequence[Node]) -> str:
    """Why no node could hold the replica even were it empty, and what to do; empty where one could."""
    labelled = [node for node in nodes if not node.drained and _has_labels(node, settings)]
    if not labelled and settings.labels:
        return (
            f"no node has the labels {_listed(settings.labels)}; change `placement.labels` in model.yaml, or add such "
            "a node"
        )
    if any(_fits(settings.bundle, node.resources) for node in labelled):
        return ""
    lacking = {
        kind: most
        for kind, amount in settings.bundle.items()
        if (most := max((node.resources.get(kind, 0.0) for node in labelled), default=0.0)) + SLACK < amount
    }
    if not lacking:
        return (
            f"no single node has {_amounts(settings.bundle)}; change `cpus`, `memory_mib`, `device` or "
            "`placement.resources` in model.yaml, or add such a node"
        )
    if set(lacking) == {"GPU"}:
        return "no node of the cluster has a GPU that Ray counts; set `device: cpu` in model.yaml or add such a node"
    kind, most = next(iter(lacking.items()))
    return (
        f"a replica takes {_amount(kind, settings.bundle[kind])} {kind}, and the largest node has "
        f"{_amount(kind, most)}; lower it in model.yaml, "
        "cut the model into more stages, or add such a node"
    )


def why_no_room(settings: StageSettings) -> str:
    """What to tell where some node could hold the replica, and none has room for it now."""
    return (
        f"no room: a replica takes {_amounts(settings.bundle)}, and no node that has such has so much free; scale "
        "something down, or add a node"
    )


def _free(node: Node, placed: Sequence[Placed]) -> dict[str, float]:
    free = dict(node.resources)
    for one in placed:
        if one.node == node.id:
            for kind, amount in one.bundle.items():
                free[kind] = free.get(kind, 0.0) - amount
    return free


def _fits(bundle: Mapping[str, float], free: Mapping[str, float]) -> bool:
    return all(free.get(kind, 0.0) + SLACK >= amount for kind, amount in bundle.items())


def _has_labels(node: Node, settings: StageSettings) -> bool:
    return all(node.labels.get(name) == value for name, value in settings.labels.items())


def _amounts(bundle: Mapping[str, float]) -> str:
    return ", ".join(f"{kind}: {_amount(kind, amount)}" for kind, amount in bundle.items())


def _amount(kind: str, amount: float) -> str:
    return f"{amount / MIB:.0f} MiB" if kind == MEMORY else f"{amount:g}"


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())
