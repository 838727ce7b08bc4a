"""What a roll-out's target takes over from what serves: how many replicas it begins with, and whose requests it gets.

While a roll-out is on, either pipeline is sized for every request of the model: the new one since it shall get them all
at once, the old one since it gets them back where the new one is taken back.
"""

from collections import defaultdict
from collections.abc import Mapping

from cluster.state import MAX_REPLICAS, ServedModel, State
from cluster.world import Pipeline


def begins_with(target: ServedModel, now: ServedModel) -> ServedModel:
    """`target` with the replicas to come up with beside what serves `now`.

    Scaled: at least as many as serve. Fixed: what `shardline scale` made of the number in model.yaml, until the file
    says another one.
    """
    if target.bounds is not None:
        return at_least(target, now)
    if now.bounds is not None or target.config.stage_replicas != now.config.stage_replicas:
        return target
    return target.model_copy(update={"replicas": {one: now.replicas[before(one, now)] for one in target.replicas}})


def at_least(target: ServedModel, now: ServedModel) -> ServedModel:
    """`target` with no fewer replicas than serve `now`, where the cut is the same and within its bounds; never 0."""
    most = target.bounds[1] if target.bounds else (MAX_REPLICAS,) * target.config.stages
    same_cut = target.config.stages == now.config.stages
    replicas = {
        version: tuple(
            max(1, mine, min(theirs, limit))
            for mine, theirs, limit in zip(
                counts, now.replicas[before(version, now)] if same_cut else counts, most, strict=True
            )
        )
        for version, counts in target.replicas.items()
    }
    return target.model_copy(update={"replicas": replicas})


def before(version: int, now: ServedModel) -> int:
    """The version whose requests `version` gets: itself, or the newest, which answers those that name none."""
    return version if version in now.replicas else max(now.replicas)


def comes_up(state: State, pipeline: Pipeline) -> bool:
    """Whether it is the target of a roll-out that is on its way."""
    rollout = state.rollouts.get(pipeline.model)
    return rollout is not None and rollout.target.revision == pipeline.revision


def beside(state: State) -> Mapping[Pipeline, list[Pipeline]]:
    """For each pipeline of a roll-out, those of the other revision whose requests it gets too, or may get back."""
    found: dict[Pipeline, list[Pipeline]] = defaultdict(list)
    for name, rollout in state.rollouts.items():
        now, target = state.models[name], rollout.target
        for version in target.replicas:
            new = Pipeline(name, version, target.revision)
            old = Pipeline(name, before(version, now), now.revision)
            found[new].append(old)
            found[old].append(new)
    return found
