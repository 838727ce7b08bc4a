"""What becomes of a model that is asked for three times as much as it can do?

The same model is served twice: with admission by predicted finish (the default), and with a plain queue. Each
is measured alone, in rounds: what it can do (closed loop), then an open loop at three times that, then at half of it.
What it can do is measured again after each round: goodput, what was answered inside the deadline, is compared with
what could be done right before and after, and the median of the rounds is told. A refusal's time is told twice: as the
gateway measures it, from the read of the request's last bytes to the write of the refusal, and as its client sees it,
who waits for the processor too.

The clients are on the same machine, and three times the load takes them and the gateway three times the processor. With
as many stages as cores that is taken from the workers, and from the goodput: leave one core free of them.

    python -m benchmarks.overload [--seconds 8] [--rounds 3] [--deadline 1] [--stages 1] [--json]
"""

import argparse
import contextlib
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import servers
from benchmarks.load import run_load, write_requests
from benchmarks.open_load import BUCKET_S, Fates, run_steps
from compressor.model import Input, Model
from compressor.package import package
from protos import inference_pb2 as pb

KINDS = ("predicted", "queue")
TIMES = 3.0
LAYERS, WIDTH, POSITIONS = 12, 512, 256
MODEL_YAML = """\
stages: {stages}
replicas: 1
cpus: 0.5
batching: {{max_rows: 8}}
limits: {{admission: {kind}, max_inflight_per_replica: 1024}}
"""


class Layers(torch.nn.Module):
    """So many matrix products a row that a batch of eight takes about eight times as long as one row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.unsqueeze(1).expand(-1, POSITIONS, -1) + torch.linspace(-1, 1, POSITIONS).view(1, POSITIONS, 1)
        for layer in self.layers:
            y = torch.relu(layer(y))
        return y.mean(1)


@dataclass(frozen=True, slots=True)
class Inside:
    """Refusals as the gateway measures them, over the last ten seconds."""

    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Result:
    """capacity: answers a second of the closed loop, mean. shares: of the capacity around it, each round's goodput.
    overload: of the worst round. inside: of the slowest.
    grew_mb, grew_again_mb: the gateway and the workers, by the first round and by the later ones.
    recovered_s: from the end of an overload until everything is answered in time again, the longest.
    """

    capacity: float
    shares: tuple[float, ...]
    overload: Fates
    inside: Inside
    grew_mb: float
    grew_again_mb: float
    recovered_s: float

    @property
    def goodput_share(self) -> float:
        return statistics.median(self.shares)


def make_models(folder: Path, stages: int) -> Path:
    model = Model(Layers(), (Input("x", torch.zeros(2, WIDTH), ("batch", None)),), outputs=("y",))
    for kind in KINDS:
        package(model, folder / kind, stages=(stages,), runtime="eager")
        (folder / kind / "model.yaml").write_text(MODEL_YAML.format(kind=kind, stages=stages))
    return folder


def make_request(name: str) -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, WIDTH])
    return pb.ModelInferRequest(
        model_name=name, inputs=[tensor], raw_input_contents=[torch.randn(WIDTH).numpy().tobytes()]
    ).SerializeToString()


def measure(target: str, state_dir: Path, requests: Path, *, seconds: float, deadline_s: float, rounds: int) -> Result:
    """`requests`: a file that is named after the model."""

    def capacity() -> float:
        return run_load(target, requests, callers=32, seconds=max(3.0, seconds / 2)).per_second

    capacities, resident = [capacity()], [resident_mb(state_dir)]
    overloads: list[Fates] = []
    insides: list[Inside] = []
    recovered_s = 0.0
    for _ in range(rounds):
        rates = [(TIMES * capacities[-1], seconds), (capacities[-1] / 2, 4.0)]
        overload, after = run_steps(target, requests, rates, deadline_s)
        overloads.append(overload)
        insides.append(refusals_inside(state_dir, requests.name))
        resident.append(resident_mb(state_dir))
        capacities.append(capacity())
        late = [number for number, share in enumerate(after.in_time_by_bucket) if share < 1.0]
        recovered_s = max(recovered_s, (late[-1] + 1) * BUCKET_S if late else 0.0)
    around = [statistics.mean(pair) for pair in itertools.pairwise(capacities)]
    shares = [overload.goodput / capacity for overload, capacity in zip(overloads, around, strict=True)]
    return Result(
        statistics.mean(capacities),
        tuple(shares),
        overloads[shares.index(min(shares))],
        max(insides, key=lambda one: one.p99_ms),
        resident[1] - resident[0],
        resident[-1] - resident[1],
        recovered_s,
    )


def refusals_inside(state_dir: Path, model: str) -> Inside:
    (told,) = (one for one in servers.status(state_dir)["models"] if one["model"] == model)
    return Inside(round(told["refusal_p50_ms"], 2), round(told["refusal_p99_ms"], 2))


def resident_mb(state_dir: Path) -> float:
    """Of the gateway's processes and the workers."""
    gateway = psutil.Process(json.loads((state_dir / "gateway.ready").read_text())["pid"])
    workers = [
        psutil.Process(replica["pid"])
        for model in servers.status(state_dir)["models"]
        for stage in model["stages"]
        for replica in stage["replicas"]
    ]
    total = 0
    for process in (gateway, *gateway.children(recursive=True), *workers):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 1e6


def table(results: dict[str, Result], deadline_s: float) -> Table:
    shown = Table("", *results, title=f"{TIMES:g} times the capacity, deadline {1e3 * deadline_s:.0f} ms")
    rows: dict[str, Callable[[Result], str]] = {
        "capacity, answers a second": lambda one: f"{one.capacity:.0f}",
        "sent a second": lambda one: f"{one.overload.sent / one.overload.seconds:.0f}",
        "answered in time a second": lambda one: f"{one.overload.goodput:.0f}",
        "of the capacity, each round": lambda one: " ".join(f"{100 * share:.0f} %" for share in one.shares),
        "refused": lambda one: str(one.overload.refused),
        "late": lambda one: str(one.overload.late),
        "other": lambda one: str(one.overload.other),
        "refusal, in the gateway, p50 / p99 ms": lambda one: f"{one.inside.p50_ms} / {one.inside.p99_ms}",
        "refusal, at its client, p50 / p99 ms": lambda one: (
            f"{one.overload.refused_p50_ms} / {one.overload.refused_p99_ms}"
        ),
        "answer, at its client, p50 / p99 ms": lambda one: (
            f"{one.overload.in_time_p50_ms} / {one.overload.in_time_p99_ms}"
        ),
        "memory grew by, then by, MB": lambda one: f"{one.grew_mb:.0f}, {one.grew_again_mb:.0f}",
        "all in time again after, s": lambda one: f"{one.recovered_s:g}",
    }
    for name, tell in rows.items():
        shown.add_row(name, *(tell(one) for one in results.values()))
    return shown


def as_json(results: dict[str, Result]) -> dict[str, float]:
    found: dict[str, float] = {}
    for kind, one in results.items():
        found |= {
            f"{kind}_goodput_share": round(one.goodput_share, 3),
            f"{kind}_goodput_share_worst": round(min(one.shares), 3),
            f"{kind}_refused_inside_p50_ms": one.inside.p50_ms,
            f"{kind}_refused_inside_p99_ms": one.inside.p99_ms,
            f"{kind}_refused_p50_ms": one.overload.refused_p50_ms,
            f"{kind}_refused_p99_ms": one.overload.refused_p99_ms,
            f"{kind}_late": one.overload.late,
            f"{kind}_grew_mb": round(one.grew_mb, 1),
            f"{kind}_grew_again_mb": round(one.grew_again_mb, 1),
            f"{kind}_recovered_s": one.recovered_s,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each overload (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=3, help="of each kind (default: %(default)d)")
    parser.add_argument("--deadline", type=float, default=1.0, help="of a request, seconds (default: %(default)g)")
    parser.add_argument("--stages", type=int, default=1, help="of the model (default: %(default)d)")
    parser.add_argument("--json", action="store_true", help="print one last line of JSON")
    given = parser.parse_args()
    console = Console(stderr=True)
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = make_models(folder / "models", given.stages)
        console.print("starting")
        with servers.shardline(models, folder / "state") as target:
            for kind in KINDS:
                console.print(f"measuring {kind}")
                write_requests(folder / kind, [make_request(kind)])
                results[kind] = measure(
                    target,
                    folder / "state",
                    folder / kind,
                    seconds=given.seconds,
                    deadline_s=given.deadline,
                    rounds=given.rounds,
                )
    Console().print(table(results, given.deadline))
    if given.json:
        print(json.dumps(as_json(results)))


if __name__ == "__main__":
    main()
