"""A cluster to be hurt: a `shardline serve` of a three-stage model, and what its controller says of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from cluster.control_client import ControlClient
from cluster.state import StateDir
from compressor.package import package
from protos import control_pb2
from tests.chaos import faults, seen
from tests.shardline.serve_process import ServeProcess, serve, wait_for
from worker.errors import ShardlineError
from worker.model_yaml import ModelYaml, write_model_yaml

STAGES: Final = 3
OTHER_STAGES: Final = 2
REPLICAS: Final = 2
CPUS_OF_A_REPLICA: Final = 0.25
START_WITHIN_S: Final = 240.0


def make_models(folder: Path) -> Path:
    """models/chain: `tests.models.chain` cut into three stages with two replicas each."""
    package("tests.models:chain", folder / "chain", stages=(STAGES, OTHER_STAGES), runtime="eager")
    write_plan(folder, STAGES)
    return folder


def write_plan(models: Path, stages: int) -> None:
    config = ModelYaml(stages=stages, replicas=REPLICAS, cpus=CPUS_OF_A_REPLICA, runtime="eager", handler=faults.NAME)
    write_model_yaml(models / "chain" / "model.yaml", config)


class Cluster:
    """`serving`: the `serve` in front. Asks the controller itself: quicker than the command line.

    note: what the case at hand shows besides. seen: where its workers record what they saw; None: nowhere.
    """

    def __init__(self, serving: ServeProcess, models: Path) -> None:
        self.serving = serving
        self.models = models
        self.url = serving.url
        self.note = ""
        self.seen = seen.folder()

    @contextmanager
    def controller(self) -> Iterator[ControlClient]:
        with ControlClient(StateDir(self.serving.state_dir).read_control()) as client:
            yield client

    def status(self) -> control_pb2.ClusterStatus | None:
        """None while the controller does not answer."""
        try:
            with self.controller() as client:
                return client.status(2.0)
        except ShardlineError:
            return None

    def lanes(self) -> list[control_pb2.ModelStatus]:
        """The pipelines that there are: two while a roll-out is on; none while the controller does not answer."""
        status = self.status()
        return list(status.models) if status is not None else []

    def replicas(self, stage: int | None = None, state: str = "ready") -> list[control_pb2.ReplicaStatus]:
        """Those of a stage, or of all, that are in `state`."""
        return [
            replica
            for lane in self.lanes()
            for each in lane.stages
            if stage in (None, each.stage)
            for replica in each.replicas
            if replica.state == state
        ]

    def computed_rows(self, pid: int) -> int:
        return next((replica.computed_rows for replica in self.replicas() if replica.pid == pid), 0)

    def is_whole(self, without: frozenset[int] = frozenset(), stages: int = STAGES) -> bool:
        """Whether one pipeline of `stages` serves, every stage of which has as many ready replicas as are wanted, and
        no other living ones, none of them among the processes `without`.
        """
        status = self.status()
        if status is None or len(status.models) != 1 or not status.models[0].ready:
            return False
        found = status.models[0].stages
        return len(found) == stages and all(
            [replica.state for replica in stage.replicas] == ["ready"] * stage.desired
            and not any(replica.pid in without for replica in stage.replicas)
            for stage in found
        )

    def scale(self, replicas: int, stage: int | None = None) -> None:
        """Raises the controller's error."""
        with self.controller() as client:
            client.scale("chain", stage, replicas)

    def processes(self, part: str) -> list[psutil.Process]:
        """Those below `serve` whose command line contains `part`."""
        return self.serving.named(part)


@contextmanager
def cluster(models: Path, state_dir: Path, *options: str, cpus: int | None = 2) -> Iterator[Cluster]:
    """Serves `models`, once every replica is ready, until the context ends."""
    with serve(models, state_dir, *options, cpus=cpus, within_s=START_WITHIN_S) as serving:
        one = Cluster(serving, models)
        wait_for("every replica is ready", one.is_whole, START_WITHIN_S)
        yield one


@contextmanager
def one_machine(folder: Path) -> Iterator[Cluster]:
    """`shardline serve` with an embedded Ray and two gateway processes."""
    with cluster(make_models(folder / "models"), folder / "state", "--processes", "2", cpus=3) as one:
        yield one
