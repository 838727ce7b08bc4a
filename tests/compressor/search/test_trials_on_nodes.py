import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from compressor.search.fan_out import Job, ray_tasks


@pytest.mark.slow
def test_on_a_cluster_of_several_nodes_trials_stay_on_the_drivers_whose_files_they_share(tmp_path: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        cluster.add_node(num_cpus=4)
        with ray_tasks(tmp_path, cpus=2, address=cluster.address) as tasks:
            here = ray.get_runtime_context().get_node_id()
            jobs: dict[str, Job] = {str(place): (node, ()) for place in range(8)}
            assert set(dict(tasks.each(jobs, time.monotonic() + 600)).values()) == {here}
            assert tasks.alone((node, ())) == here
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def node(_: Path) -> str:
    return ray.get_runtime_context().get_node_id()
