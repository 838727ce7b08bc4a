"""Two hosts on one machine: the second is a Ray node in a network namespace of its own, at the end of a veth wire.

It does not see the folder of models, and its home is a small disk: what it serves, it fetched. `Wire` (see
`tests.chaos.wire`) takes the veth's place while the wire shall be slow, where the kernel has no netem.
"""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import psutil

from tests.chaos.case import Refused
from tests.chaos.cluster import Cluster, cluster, make_models
from tests.shardline.serve_process import alive, wait_for
from tests.shardline.test_join import a_free_port

HEAD_CPUS: Final = 2
"""Room for all replicas: the cluster must be whole without the other host."""
OTHER_CPUS: Final = 1
DISK: Final = "8m"
START_WITHIN_S: Final = 120.0


class OtherHost:
    """`disk`: its home, of `DISK` bytes. here, there: the two ends' addresses; near, far: their devices.

    port: of Ray's head.
    """

    def __init__(self, folder: Path, models: Path) -> None:
        number = os.getpid() % 4096
        net = f"10.{200 + number // 256}.{number % 256}"
        self.here, self.there = f"{net}.1", f"{net}.2"
        self.space = f"shardline{number}"
        self.near, self.far = f"sl{number}n", f"sl{number}f"
        self.port = a_free_port()
        self.disk = folder / "home"
        self._folder = folder
        self._models = models
        self._node: subprocess.Popen[str] | None = None
        self._logs = 0

    @contextmanager
    def wired(self) -> Iterator[None]:
        """The namespace, the wire and the disk; raises Refused where the kernel does not have them."""
        with ExitStack() as stack:
            refused_unless("ip", "netns", "add", self.space)
            stack.callback(command, "ip", "netns", "del", self.space)
            refused_unless("ip", "link", "add", self.near, "type", "veth", "peer", "name", self.far)
            stack.callback(subprocess.run, ["ip", "link", "del", self.near], check=False, capture_output=True)
            command("ip", "link", "set", self.far, "netns", self.space)
            command("ip", "addr", "add", f"{self.here}/30", "dev", self.near)
            command("ip", "link", "set", self.near, "up")
            self.inside("ip", "link", "set", "lo", "up")
            self.inside("ip", "addr", "add", f"{self.there}/30", "dev", self.far)
            self.inside("ip", "link", "set", self.far, "up")
            self.disk.mkdir()
            refused_unless("mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(self.disk))
            stack.callback(command, "umount", "--lazy", str(self.disk))
            try:
                yield
            finally:
                self.end_node()

    def inside(self, *words: str) -> None:
        command("ip", "netns", "exec", self.space, *words)

    def start_node(self) -> None:
        """A Ray node there. The models' folder is covered by an empty one."""
        start = ray_start(f"--address={self.here}:{self.port}", f"--node-ip-address={self.there}", cpus=OTHER_CPUS)
        covered = 'mount -t tmpfs -o size=4k tmpfs "$0" && exec "$@"'
        self._logs += 1
        log = self._folder / f"other-{self._logs}.log"
        self._node = started(
            log,
            [
                *("ip", "netns", "exec", self.space, "unshare", "--mount", "--propagation", "private"),
                *("sh", "-c", covered, str(self._models), *start),
            ],
            HOME=str(self.disk),
        )

    def ask_node_to_end(self) -> None:
        """SIGTERM, as whoever shuts a host down sends it."""
        if self._node is None:
            raise RuntimeError("the other host has no Ray node")
        self._node.send_signal(signal.SIGTERM)

    def await_node_end(self, within_s: float) -> None:
        """Raises subprocess.TimeoutExpired."""
        if self._node is not None:
            self._node.wait(within_s)
            self._node = None

    def end_node(self) -> None:
        """With everything below it, whatever state it is in."""
        if self._node is not None:
            end(self._node)
            self._node = None


class OnHosts(Cluster):
    """`other`: the second host."""

    other: OtherHost

    def pids_there(self) -> frozenset[int]:
        """Of the ready workers on the other host."""
        return frozenset(one.pid for one in self.replicas() if one.address.startswith(f"{self.other.there}:"))


@contextmanager
def two_hosts(folder: Path) -> Iterator[Cluster]:
    """A head, which `serve` joins, and one more node behind a wire."""
    models = make_models(folder / "models")
    other = OtherHost(folder, models)
    with a_token(), other.wired():
        log = folder / "head.log"
        here = ("--head", f"--port={other.port}", f"--node-ip-address={other.here}", f"--temp-dir={folder}")
        head = started(log, [*ray_start(*here, cpus=HEAD_CPUS), "--include-dashboard=false"])
        try:
            wait_for(f"the head runs; see {log}", lambda: "--block" in log.read_text(), START_WITHIN_S)
            other.start_node()
            with cluster(models, folder / "state", "--address", f"{other.here}:{other.port}", cpus=None) as one:
                on_hosts = OnHosts(one.serving, models)
                on_hosts.other = other
                yield on_hosts
        finally:
            other.end_node()
            end(head)


@contextmanager
def a_token() -> Iterator[None]:
    """In the environment of all that is started meanwhile: what Ray's nodes, and who joins them, ask for."""
    before = dict(os.environ)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        yield
    finally:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            del os.environ[name]
            os.environ.update({name: before[name]} if name in before else {})


def ray_start(*options: str, cpus: int) -> list[str]:
    return [str(Path(sys.executable).parent / "ray"), "start", "--block", f"--num-cpus={cpus}", *options]


def started(log: Path, words: list[str], **environment: str) -> subprocess.Popen[str]:
    """In the repository's folder, so that its modules are found. What it says goes to `log`."""
    more = {"RAY_USAGE_STATS_ENABLED": "0", **environment}
    with log.open("w") as said:
        return subprocess.Popen(
            words, stdout=said, stderr=said, env={**os.environ, **more}, cwd=Path(__file__).parents[2], text=True
        )


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        below = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for each in alive(below):
            each.kill()
        psutil.wait_procs(below, 10)
    process.wait(10)


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=30)


def refused_unless(*words: str) -> None:
    """Raises Refused with what the kernel or the tool says."""
    try:
        command(*words)
    except FileNotFoundError as error:
        raise Refused(f"there is no {words[0]!r} command") from error
    except subprocess.CalledProcessError as error:
        raise Refused(f"{' '.join(words)}: {error.stderr.strip()}") from error
