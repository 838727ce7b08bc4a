"""What does a sentence classifier lose with half its layers? MiniLM with a head on SST-2, 872 sentences of its dev set.

The teacher is all-MiniLM-L6-v2 fine-tuned for two epochs on 6,920 sentences; the student keeps every second of its six
layers and learns from the teacher's classes and hidden states; then its linear layers go to int8. Accuracies are those
of the compiled artifacts, with paired bootstrap intervals (95 %); times are medians of runs taken in turns on one
thread. The trainings take about 10 minutes of one core, are kept under build/, and go on where they were stopped.

    python -m benchmarks.compression.sst2 [--rounds 15] [--json]
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.compression.sst2_models import DATA, SEED, WORK, records, student, teacher
from benchmarks.compression.ways import compiled, eager, milliseconds
from benchmarks.shard import minilm
from compressor.evaluation.evaluation import Accuracy
from compressor.profiling.measure import threads
from compressor.quantization.formats import Int8Dynamic
from compressor.recipe_file import RecipeFile

SHAPES: Final = ((1, 32), (32, 32))
"""(rows, tokens of each)."""

EAGER, TEACHER, STUDENT, TEACHER_INT8, STUDENT_INT8 = (
    "6 layers, eager fp32",
    "6 layers, compiled fp32",
    "3 layers, compiled fp32",
    "6 layers, int8",
    "3 layers, int8",
)


def tokens_of(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1000, 30000, (rows, length), generator=torch.Generator().manual_seed(rows))
    return ids, torch.ones_like(ids)


def measured(folder: Path, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    int8 = RecipeFile(steps=(Int8Dynamic(),), seed=SEED)
    whole = teacher(folder, say)
    ways = {
        EAGER: eager(whole),
        TEACHER: compiled(WORK / "teacher-fp32", teacher(folder, say), say),
        STUDENT: compiled(WORK / "student-fp32", student(folder, say), say),
        TEACHER_INT8: compiled(WORK / "teacher-int8", teacher(folder, say), say, int8),
        STUDENT_INT8: compiled(WORK / "student-int8", student(folder, say), say, int8),
    }
    say("accuracy")
    kind, data = Accuracy(), records("dev")
    answers = {name: kind.answers(way.run, whole, data) for name, way in ways.items()}
    accuracy = {name: kind.interval(found, data) for name, found in answers.items()}
    drops = {name: kind.drop(answers[name], answers[TEACHER], data) for name in (STUDENT, TEACHER_INT8, STUDENT_INT8)}
    say("times")
    times = {f"{rows}x{length}": milliseconds(ways, tokens_of(rows, length), rounds) for rows, length in SHAPES}
    large = times["32x32"]
    return {
        "sentences": len(data),
        "teacher_accuracy": round(accuracy[TEACHER].value, 3),
        "student_accuracy": round(accuracy[STUDENT].value, 3),
        "student_int8_accuracy": round(accuracy[STUDENT_INT8].value, 3),
        "student_kept": round(accuracy[STUDENT].value / accuracy[TEACHER].value, 4),
        "student_int8_kept": round(accuracy[STUDENT_INT8].value / accuracy[TEACHER].value, 4),
        "student_drop_points": round(drops[STUDENT].value, 3),
        "student_drop_upper_bound": round(drops[STUDENT].high, 3),
        "student_int8_drop_points": round(drops[STUDENT_INT8].value, 3),
        "student_int8_drop_upper_bound": round(drops[STUDENT_INT8].high, 3),
        "student_time_ratio": round(large[STUDENT] / large[TEACHER], 3),
        "student_int8_time_ratio": round(large[STUDENT_INT8] / large[TEACHER], 3),
        "student_int8_speedup_vs_eager": round(large[EAGER] / large[STUDENT_INT8], 3),
        "accuracy": {name: [round(v, 3) for v in (a.value, a.low, a.high)] for name, a in accuracy.items()},
        "milliseconds": {shape: {n: round(v, 3) for n, v in found.items()} for shape, found in times.items()},
        "bytes": {name: way.size for name, way in ways.items()},
    }


def show(figures: Mapping[str, Any], console: Console) -> None:
    table = Table(title=f"MiniLM on {figures['sentences']} sentences of SST-2, one thread (time over compiled fp32's)")
    shapes = list(figures["milliseconds"])
    for column in ("", "accuracy, %", "95 % interval", *(f"ms, {shape}" for shape in shapes), "program, MB"):
        table.add_column(column, justify="right" if column else "left")
    for name, (value, low, high) in figures["accuracy"].items():
        times = [figures["milliseconds"][shape] for shape in shapes]
        shown = [f"{found[name]:.2f} ({found[name] / found[TEACHER]:.2f})" for found in times]
        size = figures["bytes"][name]
        table.add_row(name, f"{value:.2f}", f"{low:.2f} … {high:.2f}", *shown, f"{size / 1e6:.1f}" if size else "")
    console.print(table)
    console.print(
        f"the student keeps {100 * figures['student_kept']:.1f} % of the accuracy, "
        f"{100 * figures['student_int8_kept']:.1f} % in int8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="runs of which the median is taken")
    parser.add_argument("--json", action="store_true", help="prints one last line of JSON")
    given = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"benchmarks.compression.sst2: {DATA} is missing; it holds train.tsv and dev.tsv, text<TAB>label")
    console = Console(stderr=given.json)
    with threads(1):
        figures = measured(minilm(), given.rounds, console.print)
    show(figures, console)
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
