"""What does a user gain? MiniLM on this machine's cores, sentences of 8 to 128 tokens, 1, 16 and 32 callers.

    two_stages    Shardline, int8, cut in two, one replica of each stage, one thread each
    one_stage     Shardline, int8, whole, two replicas, one thread each
    ray_serve     Ray Serve, fp32 eager, `@serve.batch`, two replicas, one thread each: what a user would write today

On a GPU (`--device cuda:0`) each has the GPU to itself, and all compute in fp16: both stages on it; one replica of the
whole; one replica of Ray Serve, in eager. Batches have up to 64 rows, and there are up to 256 callers.

Only one of them runs at a time; they take turns, round after round, each time in the other order, and are asked by the
same client with the same requests. Figures are medians over the rounds; ratios are taken within a round, since a shared
machine's speed changes from minute to minute, and the median of them is told, with the least and the largest.

    python -m benchmarks.serving [--device cuda:0] [--seconds 4] [--rounds 7] [--json]
"""

import argparse
import contextlib
import json
import random
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import servers
from benchmarks.load import Figures, median_of, run_load, write_requests
from compressor.package import package
from compressor.quantization.formats import Fp16, Int8Dynamic
from compressor.recipe import Recipe, find_packaged
from compressor.recipe_file import RecipeFile
from compressor.step import Step
from protos import inference_pb2 as pb
from shardline.demo import weights
from worker.errors import Unsupported
from worker.runtime import check_device

RIVALS = ("two_stages", "one_stage", "ray_serve")
LENGTHS = (8, 128)
VOCABULARY = 30_000
REQUESTS = 512
CACHE = Path("build/benchmarks")
MODEL_YAML = """stages: {stages}
replicas: {replicas}
cpus: 1
device: {device}
batching: {{max_rows: {rows}}}
limits: {{max_inflight_per_replica: {inflight}}}
"""

Case = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Place:
    """Where all rivals compute. replicas: of those that serve the model whole. rows: of a batch, at most."""

    device: str
    replicas: int
    rows: int
    callers: tuple[int, ...]
    step: Step


def place_of(device: str) -> Place:
    if device == "cpu":
        return Place(device, replicas=2, rows=16, callers=(1, 16, 32), step=Int8Dynamic())
    return Place(device, replicas=1, rows=64, callers=(1, 16, 32, 256), step=Fp16())


def make_models(place: Place, console: Console) -> dict[str, Path]:
    """A models folder for each way of serving; packaged once, kept under build/."""
    packaged = CACHE / "packaged" / "minilm"
    steps = RecipeFile(steps=(place.step,))
    recipe = Recipe(weights(), compression=steps, stages=(1, 2), device=place.device)
    folder = find_packaged(packaged, recipe)
    if folder is None:
        console.print("packaging MiniLM (some minutes, once)")
        folder = package(
            recipe.source,
            packaged,
            compression=steps,
            stages=(1, 2),
            device=place.device,
            progress=lambda said: console.print(said, markup=False),
        )
    made = {}
    for name, stages, replicas in (("two_stages", 2, 1), ("one_stage", 1, place.replicas)):
        models = CACHE / name
        shutil.rmtree(models, ignore_errors=True)
        shutil.copytree(folder, models / "minilm" / "1")
        (models / "minilm" / "model.yaml").write_text(
            MODEL_YAML.format(
                stages=stages, replicas=replicas, device=place.device, rows=place.rows, inflight=4 * place.rows
            )
        )
        made[name] = models
    return made


def make_requests(seed: int = 0) -> list[bytes]:
    """One sentence each, lengths drawn evenly from `LENGTHS`."""
    chance = random.Random(seed)
    requests = []
    for _ in range(REQUESTS):
        length = chance.randint(*LENGTHS)
        ids = np.array([chance.randrange(1000, VOCABULARY) for _ in range(length)], np.int64)
        request = pb.ModelInferRequest(
            model_name="minilm",
            inputs=[
                pb.ModelInferRequest.InferInputTensor(name=name, datatype="INT64", shape=[1, length])
                for name in ("input_ids", "attention_mask")
            ],
            raw_input_contents=[ids.tobytes(), np.ones(length, np.int64).tobytes()],
        )
        requests.append(request.SerializeToString())
    return requests


@contextlib.contextmanager
def serving(rival: str, models: dict[str, Path], state: Path, place: Place) -> Iterator[str]:
    if rival == "ray_serve":
        with servers.ray_serve("minilm", replicas=place.replicas, device=place.device, rows=place.rows) as address:
            yield address
    else:
        with servers.shardline(models[rival], state) as address:
            yield address


def largest_worker(rival: str, state: Path) -> float:
    """Resident MiB."""
    if rival == "ray_serve":
        pids = [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if process.info["cmdline"] and "ServeReplica" in process.info["cmdline"][0]
        ]
    else:
        stages = [stage for model in servers.status(state)["models"] for stage in model["stages"]]
        pids = [replica["pid"] for stage in stages for replica in stage["replicas"]]
    return max(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20


def measure(
    folder: Path, place: Place, *, seconds: float, rounds: int, console: Console
) -> tuple[dict[Case, list[Figures]], dict[str, float]]:
    """The rounds' figures by (rival, callers), and resident MiB of each rival's largest worker."""
    models = make_models(place, console)
    write_requests(folder / "requests", make_requests())
    runs: dict[Case, list[Figures]] = {}
    resident: dict[str, list[float]] = {}
    for number in range(rounds):
        for rival in RIVALS if number % 2 == 0 else reversed(RIVALS):
            console.print(f"round {number + 1} of {rounds}: {rival}")
            state = folder / f"{rival}-{number}"
            with serving(rival, models, state, place) as address:
                for callers in place.callers:
                    figures = run_load(
                        address, folder / "requests", callers=callers, seconds=seconds, warm_up_s=seconds / 4
                    )
                    runs.setdefault((rival, callers), []).append(figures)
                resident.setdefault(rival, []).append(largest_worker(rival, state))
    return runs, {rival: statistics.median(sizes) for rival, sizes in resident.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda:N (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each rival (default: %(default)d)")
    parser.add_argument("--json", action="store_true", help="print one last line of JSON with the ratios")
    given = parser.parse_args()
    try:
        place = place_of(check_device(given.device))
    except Unsupported as error:
        parser.exit(2, f"{error}\n")
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        runs, resident = measure(Path(folder), place, seconds=given.seconds, rounds=given.rounds, console=console)
    shown = Table(
        "callers",
        "server",
        "answers/s",
        "p50 ms",
        "p99 ms",
        "MiB, largest worker",
        title=f"MiniLM, 8-128 tokens, {place.device}",
    )
    for callers in place.callers:
        for rival in RIVALS:
            figures = median_of(runs[rival, callers])
            shown.add_row(
                str(callers),
                rival,
                f"{figures.per_second:.1f}",
                f"{figures.p50_ms:.1f}",
                f"{figures.p99_ms:.1f}",
                f"{resident[rival]:.0f}",
            )
    Console().print(shown)
    found = ratios(runs)
    for name, values in found.items():
        print(f"{name}: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    if given.json:
        told = {name: round(statistics.median(values), 3) for name, values in found.items()}
        print(json.dumps(told | {f"resident_mib_{rival}": round(size) for rival, size in resident.items()}))


def ratios(runs: dict[Case, list[Figures]]) -> dict[str, list[float]]:
    """Of each round. At 16 callers without a suffix. The comparison with Ray Serve is the two-stage pipeline's."""
    found: dict[str, list[float]] = {}
    for callers in sorted({callers for _, callers in runs}, key=lambda count: (count != 16, count)):
        suffix = "" if callers == 16 else f"_{callers}_callers"
        for two, one, theirs in zip(*(runs[rival, callers] for rival in RIVALS), strict=True):
            for name, ratio in (
                ("throughput_vs_ray_serve", two.per_second / theirs.per_second),
                ("p99_vs_ray_serve", two.p99_ms / theirs.p99_ms),
                ("two_stages_vs_two_replicas", two.per_second / one.per_second),
                ("one_stage_throughput_vs_ray_serve", one.per_second / theirs.per_second),
            ):
                found.setdefault(name + suffix, []).append(ratio)
    return found


if __name__ == "__main__":
    main()
