"""Harm between two hosts and to one of them: its link goes down, is slow; its disk is full; it is shut down."""

import errno
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from tests.chaos.case import Recovered, Refused
from tests.chaos.cluster import REPLICAS, Cluster
from tests.chaos.hosts import OnHosts, OtherHost, command
from tests.chaos.processes import has_replicas
from tests.shardline.serve_process import alive, wait_for

BLIP_S: Final = 2.0
"""Longer than a link waits for an answer to its probe, shorter than a worker may be silent."""
DELAY_S: Final = 0.05
"""Of each packet, each way."""
SLOW_FOR_S: Final = 10.0
GONE_WITHIN_S: Final = 90.0


def on_hosts(one: Cluster) -> OnHosts:
    """With replicas on both."""
    if not isinstance(one, OnHosts):
        raise TypeError("there is no other host")
    if not one.pids_there():
        for replicas in (1, REPLICAS):
            one.scale(replicas)
            wait_for(f"{replicas} of each", partial(has_replicas, one, replicas))
        wait_for("the other host has some", one.pids_there)
    return one


def link_blip(one: Cluster) -> Recovered:
    """The link is down for a moment. Whole again with the same workers."""
    hosts = on_hosts(one)
    workers = {replica.pid for replica in one.replicas()}
    with link_down(hosts.other):
        threading.Event().wait(BLIP_S)
    return lambda: one.is_whole() and {replica.pid for replica in one.replicas()} == workers


def partition(one: Cluster) -> Recovered:
    """The link goes down for good. Whole again without the other host; then the link comes back.

    What was cut off ends by itself, and the host, started anew, is one of the cluster again.
    """
    hosts = on_hosts(one)
    there = hosts.pids_there()
    workers = [psutil.Process(pid) for pid in there]
    with link_down(hosts.other):
        wait_for("whole without the other host", lambda: one.is_whole(without=there), GONE_WITHIN_S)
    wait_for("what was cut off has ended", lambda: not alive(workers), GONE_WITHIN_S)
    hosts.other.end_node()
    hosts.other.start_node()
    one.note = f"{len(there)} replicas were cut off"
    return lambda: one.is_whole(without=there) and two_nodes(one)


def slow_link(one: Cluster) -> Recovered:
    """The link delays each packet for a while. Whole again with the same workers."""
    hosts = on_hosts(one)
    workers = {replica.pid for replica in one.replicas()}
    with slowed(hosts.other):
        threading.Event().wait(SLOW_FOR_S)
    one.note = f"{1e3 * DELAY_S:g} ms each way, for {SLOW_FOR_S:g} s"
    return lambda: one.is_whole() and {replica.pid for replica in one.replicas()} == workers


def full_disk(one: Cluster) -> Recovered:
    """The other host's disk is full when its workers, which were killed, want to load. They come up elsewhere."""
    hosts = on_hosts(one)
    there = hosts.pids_there()
    cache = hosts.other.disk / ".cache" / "shardline" / "artifacts"
    fetched = list(cache.glob("*/manifest.json"))
    if not fetched:
        raise RuntimeError(f"{cache}: nothing was fetched, so nothing has to be fetched again")
    for path in sorted(cache.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    filler = hosts.other.disk / "filler"
    fill(filler)
    for pid in there:
        psutil.Process(pid).kill()
    try:
        wait_for("it says that the disk is full", lambda: said(one, "No space left on device"), GONE_WITHIN_S)
        wait_for("whole with a full disk", lambda: one.is_whole(without=there), GONE_WITHIN_S)
    finally:
        filler.unlink()
    one.note = f"{len(there)} replicas could not load there, and came up elsewhere"
    return lambda: one.is_whole(without=there)


def shut_down_host(one: Cluster) -> Recovered:
    """SIGTERM to the other host's node: Ray drains it. Whole again without it; then it is started anew."""
    hosts = on_hosts(one)
    there = hosts.pids_there()
    hosts.other.ask_node_to_end()
    wait_for("its replicas are elsewhere", lambda: one.is_whole(without=there), GONE_WITHIN_S)
    hosts.other.await_node_end(GONE_WITHIN_S)
    hosts.other.start_node()
    one.note = f"{len(there)} replicas moved off"
    return lambda: one.is_whole(without=there) and two_nodes(one)


def said(one: Cluster, what: str) -> bool:
    status = one.status()
    return status is not None and any(what in decision.why for decision in status.decisions)


def two_nodes(one: Cluster) -> bool:
    status = one.status()
    return status is not None and len(status.nodes) == 2


def fill(path: Path) -> None:
    """Until nothing more goes onto the disk."""
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(65_536))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return


@contextmanager
def link_down(other: OtherHost) -> Iterator[None]:
    """Taken down at the far end: what this host sends disappears, and nothing tells it so."""
    other.inside("ip", "link", "set", other.far, "down")
    try:
        yield
    finally:
        other.inside("ip", "link", "set", other.far, "up")


@contextmanager
def slowed(other: OtherHost) -> Iterator[None]:
    """Sends what goes between the hosts over a slow wire, and back over the quick one afterwards."""
    near, far = f"{other.near}s", f"{other.far}s"
    words = [sys.executable, "-m", "tests.chaos.wire", near, far, str(DELAY_S)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as wire:
        if wire.stdout is None or wire.stdin is None or not wire.stdout.readline():
            raise Refused(f"there is no slow wire: {(wire.stderr.read() if wire.stderr else '').strip()[-200:]}")
        try:
            command("ip", "link", "set", far, "netns", other.space)
            command("ip", "link", "set", near, "up")
            other.inside("ip", "link", "set", far, "up")
            wire.stdin.write("\n")
            wire.stdin.flush()
            other.inside("ip", "route", "replace", f"{other.here}/32", "dev", far, "src", other.there)
            command("ip", "route", "replace", f"{other.there}/32", "dev", near, "src", other.here)
            yield
            command("ip", "route", "del", f"{other.there}/32", "dev", near)
            other.inside("ip", "route", "del", f"{other.here}/32", "dev", far)
        finally:
            wire.stdin.close()
            wire.wait(10)
