"""A handler whose code is in the folder of models and nowhere else, on two Ray nodes, of which one sees that folder."""

import importlib.util
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from cluster.state import StateDir
from compressor.package import package
from tests.chaos.hosts import a_token, end, ray_start, started
from tests.shardline.serve_process import ServeProcess, infer, kill, serve, shardline, wait_for
from tests.shardline.test_join import a_free_port

HANDLER = """
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from amounts_of_this_test.amount import amount
from worker.nouns import Signature, Tensor, TensorSpec


class Adds:
    def __init__(self, assets: Path) -> None:
        self.signature = Signature(
            (TensorSpec("input", "FP32", ("batch", "width")),), (TensorSpec("output", "FP32", ("batch", "width")),)
        )
        self.amount = amount()

    def before(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensors)

    def after(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (one,) = tensors
        return (replace(one, data=(np.frombuffer(one.data, np.float32) + self.amount).tobytes()),)
"""
AMOUNT = """
from pathlib import Path


def amount() -> float:
    return float((Path(__file__).parent / "amount.txt").read_text())
"""


def write_code(model: Path, amount: int) -> None:
    inner = model / "code" / "amounts_of_this_test"
    inner.mkdir(parents=True, exist_ok=True)
    (model / "code" / "handler_of_this_test.py").write_text(HANDLER)
    (inner / "__init__.py").touch()
    (inner / "amount.py").write_text(AMOUNT)
    (inner / "amount.txt").write_text(str(amount))


@dataclass(frozen=True, slots=True)
class TwoNodes:
    """homes: of the head, which has the folder of models, and of the other node, which does not."""

    serving: ServeProcess
    model: Path
    homes: tuple[Path, Path]

    def workers(self) -> dict[int, str]:
        """Ready ones by process id, and their nodes."""
        stages = [stage for one in self.serving.status()["models"] for stage in one["stages"]]
        return {each["pid"]: each["node"] for one in stages for each in one["replicas"] if each["state"] == "ready"}

    def fetched(self) -> list[list[str]]:
        """Files of code in each node's cache."""
        caches = [home / ".cache" / "shardline" / "artifacts" for home in self.homes]
        return [sorted(path.name for path in cache.glob("*/code/**/*") if path.is_file()) for cache in caches]

    def added(self) -> set[int]:
        """What the handlers add, once each of two workers, on a node of its own, has answered a request."""
        found: set[int] = set()

        def asked() -> bool:
            values = np.ones((1, 4), np.float32)
            found.update(int(value) for value in (infer(client, values) - 31).ravel())
            replicas = self.serving.replicas(0)
            return len({one["node"] for one in replicas if one["computed_rows"] > 0}) == 2

        with triton.InferenceServerClient(self.serving.url) as client:
            wait_for("a worker of each node has answered", asked, 60)
        return found


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    unshared = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    refused = subprocess.run([*unshared, "mount -t tmpfs tmpfs /mnt"], capture_output=True, text=True, check=False)
    if refused.returncode:
        pytest.skip(f"no mount namespaces here: {refused.stderr.strip()}")
    folder = tmp_path_factory.mktemp("r")
    models = folder / "models"
    package("tests.models:chain", models / "chain", stages=(1,), runtime="eager")
    write_code(models / "chain", 5)
    (models / "chain" / "model.yaml").write_text(
        "{handler: 'handler_of_this_test:Adds', handler_code: code, replicas: 2, cpus: 0.5, runtime: eager}"
    )
    homes = folder / "home", folder / "other-home"
    for home in homes:
        home.mkdir()
    port = a_free_port()
    with ExitStack() as stack:
        stack.enter_context(a_token())
        log = folder / "head.log"
        options = ("--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false")
        head = started(log, ray_start(*options, f"--temp-dir={folder}", cpus=1), HOME=str(homes[0]))
        stack.callback(end, head)
        wait_for(f"the head runs; see {log}", lambda: "--block" in log.read_text(), 120)
        join = ray_start(f"--address=127.0.0.1:{port}", "--node-ip-address=127.0.0.1", cpus=1)
        covered = [*unshared, 'mount -t tmpfs -o size=4k tmpfs "$0" && exec "$@"', str(models), *join]
        log = folder / "other.log"
        stack.callback(end, started(log, covered, HOME=str(homes[1])))
        wait_for(f"the other node runs; see {log}", lambda: "--block" in log.read_text(), 120)
        state = folder / "state"
        serving = stack.enter_context(serve(models, state, "--address", f"127.0.0.1:{port}", cpus=None))
        two = TwoNodes(serving, models / "chain", homes)
        wait_for("a worker on each node is ready", lambda: len(set(two.workers().values())) == 2, 120)
        yield two


def test_the_code_reaches_a_node_that_has_nothing_of_it(nodes: TwoNodes) -> None:
    assert importlib.util.find_spec("handler_of_this_test") is None
    assert nodes.added() == {5}
    files = ["__init__.py", "amount.py", "amount.txt", "handler_of_this_test.py"]
    assert nodes.fetched() == [[], files], "where the folder of models is, nothing is copied"
    assert not list(nodes.model.glob("code/**/*.pyc")), "the operator's folder stays as it was"


def test_a_worker_that_starts_after_the_code_changed_has_that_of_its_revision_until_the_change_is_rolled_out(
    nodes: TwoNodes,
) -> None:
    write_code(nodes.model, 7)
    changed = f"{nodes.model}/code changed; `shardline rollout chain` takes it"
    wait_for("it is noticed", lambda: changed in [one["why"] for one in nodes.serving.status()["decisions"]], 60)
    before = nodes.workers()
    for pid in before:
        kill(pid)
    wait_for(
        "others have taken their places",
        lambda: not before.keys() & nodes.workers().keys() and len(set(nodes.workers().values())) == 2,
        120,
    )
    assert nodes.added() == {5}
    done = shardline("rollout", "chain", "--wait", "120", "--state-dir", nodes.serving.state_dir)
    assert done.returncode == 0, done.stderr
    assert nodes.added() == {7}
    done = shardline("rollback", "chain", "--wait", "120", "--state-dir", nodes.serving.state_dir)
    assert done.returncode == 0, done.stderr
    assert nodes.added() == {5}, "and it can be taken back"


def test_code_that_cannot_serve_is_refused_and_what_serves_goes_on(nodes: TwoNodes) -> None:
    before = nodes.workers()
    stray = nodes.model / "code" / "torch.py"
    stray.touch()
    refused = shardline("rollout", "chain", "--state-dir", nodes.serving.state_dir)
    stray.unlink()
    assert refused.returncode != 0
    assert "expected modules with names of their own, got torch, which is also " in refused.stderr
    assert nodes.workers() == before
    assert len(list(StateDir(nodes.serving.state_dir).handler_code.iterdir())) == 2, "of the revisions that served"
