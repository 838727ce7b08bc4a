"""A Ray cluster of this machine whose nodes come and go: Ray's own autoscaler over its fake node provider.

`ray.cluster_utils.AutoscalingCluster` does the same, but reads a file that Ray's wheel does not have, and begins by
ending every Ray of the machine. This one ends what it started.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray.util

from tests.chaos.hosts import end, ray_start, started
from tests.shardline.serve_process import wait_for

EMPTY_LISTS = (
    *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
)


@contextmanager
def fake_cloud(folder: Path, port: int, worker: Mapping[str, float], *, most: int, idle_s: float) -> Iterator[str]:
    """Yields the head's host:port. Up to `most` nodes like `worker` come; those idle for `idle_s` seconds go."""
    address = f"{ray.util.get_node_ip_address()}:{port}"  # type: ignore[no-untyped-call]
    config = folder / "cloud.json"
    config.write_text(json.dumps(_config(address, worker, most, idle_s)))
    log = folder / "head.log"
    options = ("--head", "--port", str(port), "--include-dashboard", "false", "--temp-dir", str(folder))
    head = started(
        log,
        ray_start(*options, f"--autoscaling-config={config}", cpus=1),
        RAY_FAKE_CLUSTER="1",
        AUTOSCALER_UPDATE_INTERVAL_S="1",
    )
    try:
        wait_for(f"the head runs; see {log}", lambda: "--block" in log.read_text(), 180)
        yield address
    finally:
        end(head)


def _config(address: str, worker: Mapping[str, float], most: int, idle_s: float) -> dict[str, object]:
    kinds = {
        "worker": {"resources": dict(worker), "node_config": {}, "min_workers": 0, "max_workers": most},
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
    }
    return {
        "cluster_name": "fake",
        "max_workers": 8,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            # All nodes have this machine's address, and nobody logs in to them to set them up.
            **{"use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True},
        },
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in EMPTY_LISTS},
    }
