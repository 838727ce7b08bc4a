"""What does a request cost on its way? An identity model behind Shardline, Ray Serve's gRPC ingress and a raw echo.

All three run at the same time on this machine and are asked in turn, round after round, by the same client; figures are
medians over the rounds. The raw echo is the ceiling: one hop of `grpc.aio` with uvloop that does not even read what it
sends back. Shardline's road has two hops.

    python -m benchmarks.overhead [--seconds 3] [--rounds 5] [--json]
"""

import argparse
import contextlib
import json
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import servers
from benchmarks.load import Figures, median_of, run_load, write_requests
from compressor.model import Input, Model
from compressor.package import package
from protos import inference_pb2 as pb

SIZES = {"1KB": 1024, "150KB": 150 * 1024}
CALLERS = (1, 32)
RIVALS = ("shardline", "ray_serve", "raw")
MODEL_YAML = """\
stages: 1
replicas: 1
cpus: 1
batching: {max_rows: 64, max_wait_ms: 0}
"""


class Identity(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def make_models(folder: Path) -> Path:
    """models/identity: UINT8 [batch, width], given back."""
    model = Model(Identity(), (Input("x", torch.zeros(2, 3, dtype=torch.uint8), ("batch", "width")),), outputs=("y",))
    package(model, folder / "identity", stages=(1,), runtime="eager")
    (folder / "identity" / "model.yaml").write_text(MODEL_YAML)
    return folder


def make_request(size: int) -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="UINT8", shape=[1, size])
    return pb.ModelInferRequest(
        model_name="identity", inputs=[tensor], raw_input_contents=[bytes(size)]
    ).SerializeToString()


def measure(folder: Path, *, seconds: float, rounds: int, console: Console) -> dict[tuple[str, str, int], Figures]:
    """Medians by (rival, size, callers)."""
    models = make_models(folder / "models")
    for name, nbytes in SIZES.items():
        write_requests(folder / name, [make_request(nbytes)])
    runs: dict[tuple[str, str, int], list[Figures]] = {}
    with contextlib.ExitStack() as stack:
        console.print("starting the three servers")
        targets = {
            "shardline": stack.enter_context(servers.shardline(models, folder / "state")),
            "ray_serve": stack.enter_context(servers.ray_serve("identity")),
            "raw": stack.enter_context(servers.raw_echo()),
        }
        for number in range(rounds):
            console.print(f"round {number + 1} of {rounds}")
            for size in SIZES:
                for callers in CALLERS:
                    for rival in RIVALS:
                        figures = run_load(targets[rival], folder / size, callers=callers, seconds=seconds)
                        runs.setdefault((rival, size, callers), []).append(figures)
    return {case: median_of(figures) for case, figures in runs.items()}


def ratios(medians: dict[tuple[str, str, int], Figures]) -> dict[str, float]:
    found: dict[str, float] = {}
    for size in SIZES:
        suffix = "" if size == "1KB" else f"_{size.lower()}"
        for rival in ("ray_serve", "raw"):
            ours, theirs = medians["shardline", size, 32], medians[rival, size, 32]
            found[f"throughput_vs_{rival}{suffix}"] = ours.per_second / theirs.per_second
            found[f"p99_32_callers_vs_{rival}{suffix}"] = ours.p99_ms / theirs.p99_ms
            ours, theirs = medians["shardline", size, 1], medians[rival, size, 1]
            found[f"p50_vs_{rival}{suffix}"] = ours.p50_ms / theirs.p50_ms
    return {name: round(value, 3) for name, value in found.items()}


def table(medians: dict[tuple[str, str, int], Figures]) -> Table:
    shown = Table(
        "payload", "callers", "server", "answers/s", "p50 ms", "p99 ms", title="identity model, one round trip"
    )
    for size in SIZES:
        for callers in CALLERS:
            for rival in RIVALS:
                figures = medians[rival, size, callers]
                shown.add_row(
                    size,
                    str(callers),
                    rival,
                    f"{figures.per_second:.0f}",
                    f"{figures.p50_ms:.2f}",
                    f"{figures.p99_ms:.2f}",
                )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each case (default: %(default)d)")
    parser.add_argument("--json", action="store_true", help="print one last line of JSON with the ratios")
    given = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        medians = measure(Path(folder), seconds=given.seconds, rounds=given.rounds, console=console)
    found = ratios(medians)
    Console().print(table(medians))
    for name, value in found.items():
        print(f"{name}: {value}")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
