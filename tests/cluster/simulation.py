"""A controller over a simulated fleet, a clock that tests turn, and gateways that report what tests say."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.controller import Controller
from cluster.simulated_fleet import SimulatedFleet
from cluster.state import Rollout, ServedModel, State, StateDir
from cluster.store import FileStore
from cluster.traffic import Counts, Lane, Report
from cluster.world import Pipeline
from worker.histogram import bucket_of
from worker.model_yaml import ModelYaml, parse_model_yaml
from worker.nouns import Axis, Signature, TensorSpec, WorkerStats

TOKEN = "0123456789abcdef"
SIGNATURE = Signature(
    (TensorSpec("text", "BYTES", ("batch",)),), (TensorSpec("vector", "FP32", ("batch", 384)),), (Axis("batch", 1, 8),)
)


def config(text: str) -> ModelYaml:
    return parse_model_yaml(text.encode(), "model.yaml")


def served(text: str, *versions: int) -> ServedModel:
    model, numbers = config(text), versions or (1,)
    return ServedModel(
        config=model,
        replicas=dict.fromkeys(numbers, model.stage_replicas),
        signatures=dict.fromkeys(numbers, SIGNATURE),
    )


class Simulation:
    """Each `turn` lets `second`s pass, has gateways report, and steps the controller.

    Without `models` the controller comes back: it goes on with the state that one before it left in `folder`.
    """

    def __init__(self, folder: Path, fleet: SimulatedFleet | None = None, **models: str) -> None:
        self.now = 100.0
        self.fleet = fleet or SimulatedFleet(cpus=64)
        self.store = FileStore(StateDir(folder / "state"))
        epoch = self.store.claim()
        (folder / "models").mkdir(exist_ok=True)
        state = (
            State(
                repository=str(folder / "models"),
                host="127.0.0.1",
                token=TOKEN,
                models={name: served(text) for name, text in models.items()},
            )
            if models
            else self.store.read_state()
        )
        self.controller = Controller(self.fleet, self.store, state, epoch=epoch, monotonic=lambda: self.now)
        self.lanes: dict[Pipeline, Lane] = {}
        self.seconds_per_row = 0.02

    def replicas(self, model: str, revision: int = 1) -> int:
        """That take work."""
        stages = [one.stage for one in self.fleet.replicas.values() if one.takes_work]
        return sum(stage.model == model and stage.revision == revision for stage in stages)

    def counts(self, model: str) -> tuple[int, ...]:
        """What is wanted of each stage of the only version."""
        return next(iter(self.controller.state.models[model].replicas.values()))

    def ask(
        self,
        pipeline: Pipeline,
        *,
        rows: int = 0,
        inflight: int = 0,
        unplaced: int = 0,
        answered: int = 0,
        failed: int = 0,
        took_s: float = 0.01,
    ) -> None:
        """What gateways count from the last turn to the next one. What is not asked again is not in flight any more."""
        before = self.lanes.get(pipeline, Lane()).counts
        bucket = bucket_of(took_s)
        counts = Counts(
            before.arrived_rows + rows,
            before.answered + answered,
            before.failed + failed,
            took={**before.took, bucket: before.took.get(bucket, 0) + answered},
        )
        self.lanes[pipeline] = Lane(inflight, unplaced, counts)

    async def turn(self, seconds: float = 0.5, *, reported: bool = True, told: bool = True) -> None:
        """reported: whether the gateway is heard of. told: whether replicas that are new tell what a row costs."""
        self.now += seconds
        if reported:
            self.controller.heard(Report("gateway", self.controller.state.generation, dict(self.lanes)))
        for replica in self.fleet.replicas.values():
            if replica.takes_work and told:
                self.fleet.figures[replica.id] = WorkerStats(seconds_per_row=self.seconds_per_row)
        await self.controller.step()

    async def until(self, is_so: Callable[[], bool], turns: int = 100, seconds: float = 0.5) -> None:
        for _ in range(turns):
            if is_so():
                return
            await self.turn(seconds)
        pytest.fail(f"not so after {turns} turns: {list(self.controller.decisions)[-6:]}")

    def decided(self, part: str) -> list[str]:
        """Why it was decided what has `part` in it."""
        return [decision.why for decision in self.controller.decisions if part in decision.what]


def a_rollout(text: str, *versions: int, **how: float) -> Rollout:
    return Rollout(target=served(text, *versions), why="asked to roll out", **how)  # type: ignore[arg-type]
