"""Harm to processes: killed, frozen, slowed; a replica, two, the controller, a process of the gateway."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from protos import control_pb2
from tests.chaos.case import Fault, Recovered
from tests.chaos.cluster import OTHER_STAGES, REPLICAS, STAGES, Cluster, write_plan
from tests.chaos.faults import fault_file
from tests.shardline.serve_process import shardline, wait_for

HARM_S: Final = 6.0
"""How long a harm lasts that is not over in a moment."""
ROLLS_WITHIN_S: Final = 240.0


def signal_a_worker(stage: int, number: signal.Signals) -> Fault:
    """To one replica of `stage`; whole again once another has taken its place."""

    def fault(cluster: Cluster) -> Recovered:
        victim = cluster.replicas(stage)[0].pid
        os.kill(victim, number)
        return lambda: cluster.is_whole(without=frozenset({victim}))

    return fault


def kill_two_workers(cluster: Cluster) -> Recovered:
    """One of the first stage and one of the last, in the same moment."""
    victims = frozenset({cluster.replicas(0)[0].pid, cluster.replicas(2)[0].pid})
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    return lambda: cluster.is_whole(without=victims)


def kill_the_controller(cluster: Cluster) -> Recovered:
    """Whole again once another controller has found the same workers."""
    workers = {replica.pid for replica in cluster.replicas()}
    (victim,) = cluster.processes("ray::ControllerActor")
    victim.kill()
    return lambda: {replica.pid for replica in cluster.replicas()} == workers and cluster.is_whole()


def signal_a_gateway_process(number: signal.Signals) -> Fault:
    """To one of several on the port. Whole again once there are as many again, without it."""

    def fault(cluster: Cluster) -> Recovered:
        before = cluster.processes("-m gateway.process")
        before[0].send_signal(number)

        def recovered() -> bool:
            now = cluster.processes("-m gateway.process")
            return len(now) == len(before) and before[0] not in now and listening(cluster.url) == len(before)

        return recovered

    return fault


def listening(url: str) -> int:
    """Sockets that listen on the port of `url` and take connections."""
    port = int(url.rpartition(":")[2])
    with open("/proc/net/tcp", encoding="ascii") as table:
        rows = [line.split() for line in table][1:]
    return sum(int(row[1].rpartition(":")[2], 16) == port and row[3] == "0A" for row in rows)


@contextmanager
def slowed(pid: int, times: int, period_s: float = 0.05) -> Iterator[None]:
    """The process runs for one part in `times` only: it is stopped for the rest of every period."""
    over = threading.Event()

    def throttle() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(period_s * (times - 1) / times)
            os.kill(pid, signal.SIGCONT)
            over.wait(period_s / times)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)


def slow_a_worker(stage: int) -> Fault:
    """One replica gets a tenth of its time for a while. The note says what share of the stage's work it got."""

    def fault(cluster: Cluster) -> Recovered:
        victim, other = (replica.pid for replica in cluster.replicas(stage))
        before = cluster.computed_rows(victim), cluster.computed_rows(other)
        with slowed(victim, 10):
            threading.Event().wait(HARM_S)
            rows = cluster.computed_rows(victim) - before[0], cluster.computed_rows(other) - before[1]
        cluster.note = f"the slow one computed {100 * rows[0] / max(1, sum(rows)):.0f} % of its stage's rows"
        return cluster.is_whole

    return fault


def break_a_worker(cluster: Cluster) -> Recovered:
    """One replica of the first stage fails on every request for a while. Whole again once it gets work again."""
    victim = cluster.replicas(0)[0].pid
    fault = fault_file(cluster.models, victim)
    fault.parent.mkdir(exist_ok=True)
    fault.touch()
    try:
        threading.Event().wait(HARM_S)
        rested = cluster.computed_rows(victim)
    finally:
        fault.unlink()
    return lambda: cluster.computed_rows(victim) > rested and cluster.is_whole()


def scale_down_and_up(cluster: Cluster) -> Recovered:
    """Every stage to one replica and back to two."""
    for replicas in (1, REPLICAS):
        cluster.scale(replicas)
        wait_for(f"{replicas} of each", partial(has_replicas, cluster, replicas))
    return cluster.is_whole


def has_replicas(cluster: Cluster, of_each_stage: int) -> bool:
    return cluster.is_whole() and len(cluster.replicas()) == STAGES * of_each_stage


def roll_out_and_back(cluster: Cluster) -> Recovered:
    """To another cut of the model, and back to the one before."""
    at = ("chain", "--wait", f"{ROLLS_WITHIN_S:g}", "--state-dir", cluster.serving.state_dir)
    write_plan(cluster.models, OTHER_STAGES)
    run("rollout", *at)
    wait_for("the other cut alone serves", lambda: cluster.is_whole(stages=OTHER_STAGES))
    write_plan(cluster.models, STAGES)
    run("rollback", *at)
    return cluster.is_whole


def kill_during_a_roll_out(stage: int, *, new: bool) -> Fault:
    """To another cut, half of the requests first. Meanwhile one replica is killed, of the new pipeline or of the old.

    The roll-out may go on or be taken back; the note says what it did. Whole again with the cut of before.
    """

    def fault(cluster: Cluster) -> Recovered:
        before = {lane.revision for lane in cluster.lanes()}
        at = ("--state-dir", cluster.serving.state_dir)
        write_plan(cluster.models, OTHER_STAGES)
        run("rollout", "chain", "--canary", "50", "--watch-for", str(HARM_S), *at)
        lanes = wait_for("both pipelines answer", lambda: moving(cluster), ROLLS_WITHIN_S)
        (lane,) = (lane for lane in lanes if (lane.revision not in before) is new)
        os.kill(next(one.pid for one in lane.stages[stage].replicas if one.computed_rows), signal.SIGKILL)
        (left,) = wait_for("the roll-out has ended", lambda: alone(cluster), ROLLS_WITHIN_S)
        write_plan(cluster.models, STAGES)
        went_on = left.revision not in before
        cluster.note = "it went on" if went_on else "it was taken back"
        if went_on:
            wait_for("the other cut alone serves", lambda: cluster.is_whole(stages=OTHER_STAGES))
            run("rollback", "chain", "--wait", f"{ROLLS_WITHIN_S:g}", *at)
        return cluster.is_whole

    return fault


def moving(cluster: Cluster) -> list[control_pb2.ModelStatus]:
    """Two pipelines, once they share the requests, and replicas of each stage of both have computed some."""
    lanes = cluster.lanes()
    both = len(lanes) > 1 and all(
        lane.ready and lane.weight and all(any(one.computed_rows for one in each.replicas) for each in lane.stages)
        for lane in lanes
    )
    return lanes if both else []


def alone(cluster: Cluster) -> list[control_pb2.ModelStatus]:
    """The only pipeline, once there is but one."""
    lanes = cluster.lanes()
    return lanes if len(lanes) == 1 else []


def kill_while_draining(cluster: Cluster) -> Recovered:
    """Every stage to one replica; one of those that are on their way out is killed. Then back to two."""
    cluster.scale(1)
    wait_for("one that drains was killed", lambda: killed_one_that_drains(cluster))
    wait_for("one of each", partial(has_replicas, cluster, 1))
    cluster.scale(REPLICAS)
    wait_for(f"{REPLICAS} of each", partial(has_replicas, cluster, REPLICAS))
    return cluster.is_whole


def killed_one_that_drains(cluster: Cluster) -> bool:
    for replica in cluster.replicas(state="draining"):
        with suppress(ProcessLookupError):
            os.kill(replica.pid, signal.SIGKILL)
            return True
    return False


def run(*arguments: str | Path) -> None:
    done = shardline(*arguments, within_s=ROLLS_WITHIN_S + 20)
    if done.returncode:
        raise RuntimeError(f"shardline {arguments[0]} failed: {done.stderr}")
