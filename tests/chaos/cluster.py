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
from tests.shardline.serve_process import ServeProcess, serve, wait_for
from worker.errors import ShardlineError
from worker.model_yaml import ModelYaml, write_model_yaml

STAGES: Final = 3
REPLICAS: Final = 2
CPUS_OF_A_REPLICA: Final = 0.25
START_WITHIN_S: Final = 240.0


def make_models(folder: Path, handler: str | None = None) -> Path:
    """models/chain: `tests.models.chain` cut into three stages with two replicas each."""
    package("tests.models:chain", folder / "chain", stages=(STAGES,), runtime="eager")
    config = ModelYaml(stages=STAGES, replicas=REPLICAS, cpus=CPUS_OF_A_REPLICA, runtime="eager", handler=handler)
    write_model_yaml(folder / "chain" / "model.yaml", config)
    return folder


class Cluster:
    """`serving`: the `serve` in front. Asks the controller itself: quicker than the command line."""

    def __init__(self, serving: ServeProcess) -> None:
        self.serving = serving
        self.url = serving.url

    def status(self) -> control_pb2.ClusterStatus | None:
        """None while the controller does not answer."""
        try:
            with ControlClient(StateDir(self.serving.state_dir).read_control()) as client:
                return client.status(2.0)
        except ShardlineError:
            return None

    def replicas(self, stage: int | None = None) -> list[control_pb2.ReplicaStatus]:
        """The ready ones of a stage, or of all."""
        status = self.status()
        if status is None:
            return []
        return [
            replica
            for each in status.models[0].stages
            if stage in (None, each.stage)
            for replica in each.replicas
            if replica.state == "ready"
        ]

    def is_whole(self, without: frozenset[int] = frozenset()) -> bool:
        """Whether every stage has as many ready replicas as are wanted, none of them among the processes `without`."""
        status = self.status()
        if status is None or not status.models[0].ready:
            return False
        return all(
            len(ready := [one for one in stage.replicas if one.state == "ready"]) == stage.desired
            and not any(one.pid in without for one in ready)
            for stage in status.models[0].stages
        )

    def scale(self, replicas: int, stage: int | None = None) -> None:
        """Raises the controller's error."""
        with ControlClient(StateDir(self.serving.state_dir).read_control()) as client:
            client.scale("chain", stage, replicas)

    def processes(self, part: str) -> list[psutil.Process]:
        """Those below `serve` whose command line contains `part`."""
        return self.serving.named(part)


@contextmanager
def cluster(models: Path, state_dir: Path, *options: str, cpus: int | None = 2) -> Iterator[Cluster]:
    """Serves `models`, once every replica is ready, until the context ends."""
    with serve(models, state_dir, *options, cpus=cpus, within_s=START_WITHIN_S) as serving:
        one = Cluster(serving)
        wait_for("every replica is ready", one.is_whole, START_WITHIN_S)
        yield one
