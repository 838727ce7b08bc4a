"""By which labels a stage comes to nodes of the kind that it was planned for, and to no others. Pure."""

from collections.abc import Mapping, Sequence

from cluster.planning.deployment import StagePlan
from cluster.planning.machines import Node


def labels_for(stage: StagePlan, nodes: Sequence[Node]) -> Mapping[str, str] | None:
    """Empty where every node that could hold the stage is of those kinds; None where no labels tell them apart."""
    able = [node for node in nodes if node.gpus or not stage.gpus]
    kinds = {_kind(node, stage) for node in able if node.name in stage.nodes}
    planned = [node for node in able if _kind(node, stage) in kinds]
    others = [node for node in able if _kind(node, stage) not in kinds]
    if not others:
        return {}
    shared = sorted(set[tuple[str, str]].intersection(*(set(node.labels) for node in planned)))
    alone = next((label for label in shared if not any(label in node.labels for node in others)), None)
    if alone is not None:
        return dict([alone])
    return None if any(set(shared) <= set(node.labels) for node in others) else dict(shared)


def telling(nodes: Sequence[Node]) -> frozenset[str]:
    """Names of labels that tell kinds apart: no value of theirs is borne by nodes of two kinds."""
    kinds: dict[tuple[str, str], set[object]] = {}
    for node in nodes:
        kind = (node.device, node.speed, node.gpus > 0, node.gpu_device, node.gpu_speed)
        for label in node.labels:
            kinds.setdefault(label, set()).add(kind)
    names = {name for name, _ in kinds}
    return frozenset(name for name in names if all(len(of) == 1 for label, of in kinds.items() if label[0] == name))


def _kind(node: Node, stage: StagePlan) -> tuple[str, float]:
    """As far as the stage's time depends on it."""
    return (node.gpu_device, node.gpu_speed) if stage.gpus else (node.device, node.speed)
