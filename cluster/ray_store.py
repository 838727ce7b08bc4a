"""The controller's state in Ray's own storage (GCS), which outlives the head node where it is kept in Redis."""

import hashlib
from pathlib import Path
from typing import Any

import ray.experimental.internal_kv as ray_kv

from cluster.state import State, StateError, parse_state
from cluster.store import Superseded, a_store_id


class RayStore:
    """`name` tells this run's state from others'. An epoch is claimed by making a key that nobody may make twice; each
    epoch has a state of its own: what a superseded controller still writes, nobody reads.
    """

    def __init__(self, name: str, namespace: str = "shardline") -> None:
        self._prefix = f"{name}/"
        self._namespace = namespace.encode()
        self._epoch = 0
        self.id = ""

    def claim(self) -> int:
        self._put("id", a_store_id().encode(), overwrite=False)
        self.id = (self._get("id") or b"").decode()
        epoch = self._newest() + 1
        while not self._put(f"epoch/{epoch}", b"claimed", overwrite=False):
            epoch = self._newest() + 1
        self._epoch = epoch
        # From now on the controllers before are refused. One that died in here has an epoch and no state.
        for before in sorted(self._numbers("state"), reverse=True):
            state = self._get(f"state/{before}") if before < epoch else None
            if state is not None:
                self._put(f"state/{epoch}", state)
                self._forget_before(before)
                break
        return epoch

    def check(self) -> None:
        now = self._newest()
        if now != self._epoch:
            raise Superseded(f"controller {now} has taken over from controller {self._epoch}")

    def read_state(self) -> State:
        data = self._get(f"state/{self._epoch or self._newest()}")
        if data is None:
            raise StateError("Ray's storage holds no state of this run; start `shardline serve` again")
        return parse_state(data, "Ray's storage")

    def write_state(self, state: State) -> None:
        self.check()
        self._put(f"state/{self._epoch}", state.model_dump_json().encode())

    def _newest(self) -> int:
        return max(self._numbers("epoch"), default=0)

    def _numbers(self, kind: str) -> list[int]:
        """Of the epochs of which there is an "epoch" or a "state"."""
        keys: Any = ray_kv._internal_kv_list(f"{self._prefix}{kind}/", namespace=self._namespace)
        return [int(key.rsplit(b"/", 1)[1]) for key in keys]

    def _get(self, key: str) -> bytes | None:
        value: bytes | None = ray_kv._internal_kv_get(self._prefix + key, namespace=self._namespace)
        return value

    def _put(self, key: str, value: bytes, *, overwrite: bool = True) -> bool:
        """Whether it was new or overwritten."""
        there = ray_kv._internal_kv_put(self._prefix + key, value, overwrite=overwrite, namespace=self._namespace)
        return overwrite or not there

    def _forget_before(self, epoch: int) -> None:
        for kind in ("epoch", "state"):
            for number in self._numbers(kind):
                if number < epoch:
                    ray_kv._internal_kv_del(f"{self._prefix}{kind}/{number}", namespace=self._namespace)


def store_name(state_folder: Path) -> str:
    """Of the run that has this state dir."""
    return hashlib.sha256(str(state_folder).encode()).hexdigest()[:16]
