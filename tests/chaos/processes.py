"""Harm to processes: killed, frozen, slowed; a replica, two, the controller, a process of the gateway."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tests.chaos.case import Fault, Recovered
from tests.chaos.cluster import STAGES, Cluster
from tests.shardline.serve_process import wait_for


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


def kill_a_gateway_process(cluster: Cluster) -> Recovered:
    """One of several on the port. Whole again once there are as many again."""
    before = cluster.processes("-m gateway.process")
    before[0].kill()

    def recovered() -> bool:
        now = cluster.processes("-m gateway.process")
        return len(now) == len(before) and before[0] not in now and listening(cluster.url) == len(before)

    return recovered


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


def scale_down_and_up(cluster: Cluster) -> Recovered:
    """Every stage to one replica and back to two."""
    for replicas in (1, 2):
        cluster.scale(replicas)
        wait_for(f"{replicas} of each", partial(has_replicas, cluster, replicas))
    return cluster.is_whole


def has_replicas(cluster: Cluster, of_each_stage: int) -> bool:
    return cluster.is_whole() and len(cluster.replicas()) == STAGES * of_each_stage
