"""What a roll-out's target takes over from what serves."""

from cluster.state import State
from cluster.world import Pipeline


def comes_up(state: State, pipeline: Pipeline) -> bool:
    """Whether it is the target of a roll-out that is on its way."""
    rollout = state.rollouts.get(pipeline.model)
    return rollout is not None and rollout.target.revision == pipeline.revision
