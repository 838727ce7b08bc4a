"""Runs trials, several side by side or one with every core to itself: as Ray tasks, or here, one after the other."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from worker.errors import Internal, InvalidRequest, ShardlineError
from worker.joined_ray import joined_ray
from worker.local_ray import local_ray

ALONE_WITHIN_S: Final = 1800.0
"""A trial that has every core to itself may take so long, with its wait for others to end."""

_OBJECT_STORE_BYTES: Final = 512 * 2**20
_POLL_S: Final = 1.0
_FETCH_S: Final = 60.0
_TRIES: Final = 2
_ALL_GPUS: Final = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""Ray then hides no GPU from a task."""

Job = tuple[Callable[..., Any], Sequence[Any]]
"""A module's function, and what it is given after the setting."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A job that ended in an error that is not its own, or whose process died. Others go on."""

    why: str


class FanOut(Protocol):
    """Runs functions that take the same first argument. width: how many side by side.

    An OSError ends whatever was asked for: where one job finds no room on the disk, others find none.
    """

    width: int

    def each(self, jobs: Mapping[str, Job], until: float) -> Iterator[tuple[str, Any]]:
        """(key, result or `Failed`) of each job as it ends. `until`: of `time.monotonic`; what has not ended by then is
        dropped.
        """

    def alone(self, job: Job) -> Any:
        """The job's result; while it runs, nothing else of this fan-out does.

        Raises:
            ShardlineError: the job's own. Internal: it failed otherwise.
        """


class Here:
    """One after the other, in this process."""

    width = 1

    def __init__(self, setting: Any) -> None:
        self._setting = setting

    def each(self, jobs: Mapping[str, Job], until: float) -> Iterator[tuple[str, Any]]:
        for key, job in jobs.items():
            if time.monotonic() >= until:
                return
            try:
                result = self.alone(job)
            except ShardlineError as error:
                result = Failed(str(error))
            yield key, result

    def alone(self, job: Job) -> Any:
        function, given = job
        try:
            return function(self._setting, *given)
        except (ShardlineError, OSError):
            raise
        except Exception as error:  # a model's own code, and torch, raise errors of any type
            raise Internal(_told(error)) from error


class RayTasks:
    """One task of one CPU for each job, all on this node: they share its files, and what is timed is timed on one kind
    of processor. A job that must be alone takes all CPUs, so that Ray starts nothing beside it.

    What ends the search, such as Ctrl-C, ends its tasks with this process's part in Ray: where a task is cancelled that
    ends by itself just then, Ray (2.60) aborts this process.

    `device`: where that is a GPU, each task takes one as a whole; they see all, so that `cuda:1` is the one meant.

    Raises:
        InvalidRequest: this node has fewer CPUs, or no GPU.
    """

    def __init__(self, setting: Any, cpus: int, device: str) -> None:
        here = ray.get_runtime_context().get_node_id()
        needed = {"CPU": cpus, "GPU": 0 if device == "cpu" else 1}
        _check_room(here, needed)
        self._setting = ray.put(setting)
        self.width = cpus
        environment = {} if device == "cpu" else {"runtime_env": {"env_vars": {_ALL_GPUS: "1"}}}
        self._options = {
            "num_gpus": needed["GPU"],
            "max_retries": _TRIES - 1,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
            **environment,
        }

    def each(self, jobs: Mapping[str, Job], until: float) -> Iterator[tuple[str, Any]]:
        waiting = list(jobs.items())[::-1]
        running: dict[Any, str] = {}
        while waiting or running:
            while waiting and len(running) < self.width and time.monotonic() < until:
                key, job = waiting.pop()
                running[self._started(job, 1)] = key
            if not running or time.monotonic() >= until:
                break
            done, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_S)
            for reference in done:
                yield running.pop(reference), _result_or_why(reference)
        for reference in running:
            ray.cancel(reference, force=True)

    def alone(self, job: Job) -> Any:
        reference = self._started(job, self.width)
        try:
            return _result(reference, ALONE_WITHIN_S, "does something else hold this node's CPUs?")
        except ShardlineError:
            ray.cancel(reference, force=True)
            raise

    def _started(self, job: Job, cpus: int) -> Any:
        function, given = job
        return ray.remote(_call).options(num_cpus=cpus, **self._options).remote(function, self._setting, *given)


def _check_room(node: str, needed: Mapping[str, int]) -> None:
    there: Mapping[str, float] = next(
        (each["Resources"] for each in ray.nodes() if each["NodeID"] == node),  # type: ignore[no-untyped-call]
        {},
    )
    for kind, count in needed.items():
        if there.get(kind, 0) < count:
            raise InvalidRequest(
                f"trials run on this node, which has {there.get(kind, 0):g} {kind}s for Ray, and {count} are asked "
                "for: give fewer --workers, or 0 to run without Ray"
            )


def _call(function: Callable[..., Any], setting: Any, *given: Any) -> Any:
    return function(setting, *given)


def _result_or_why(reference: Any) -> Any:
    try:
        return _result(reference, _FETCH_S, "it ended, and its result does not come")
    except ShardlineError as error:
        return Failed(str(error))


def _told(error: BaseException) -> str:
    return f"a trial failed: {type(error).__name__}: {error}"


def _result(reference: Any, within_s: float, why: str) -> Any:
    try:
        return ray.get(reference, timeout=within_s)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, (ShardlineError, OSError)):
            raise cause from error
        raise Internal(_told(cause)) from error
    except GetTimeoutError as error:
        raise Internal(f"a trial has not ended within {within_s:g} s: {why}") from error
    except RayError as error:
        raise Internal(f"a trial's process ended: {error}; is there memory for that many at once?") from error


@contextlib.contextmanager
def ray_tasks(setting: Any, *, cpus: int, device: str = "cpu", address: str | None = None) -> Iterator[RayTasks]:
    """A fan-out over a Ray of its own on this machine with `cpus` CPUs, or over the one at `address`.

    Raises:
        RayNotStarted: it cannot be started. RayNotJoined: it cannot be joined.
    """
    with joined_ray(address) if address else _own(cpus):
        yield RayTasks(setting, cpus, device)


def _own(cpus: int) -> contextlib.AbstractContextManager[None]:
    scratch = Path(tempfile.mkdtemp(prefix="shardline-tune-"))
    return local_ray(scratch, cpus=cpus, object_store_bytes=_OBJECT_STORE_BYTES)
