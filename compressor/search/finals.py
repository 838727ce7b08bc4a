"""The last word: artifacts as they would be served, on held-out data and on the clock."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from compressor.evaluation.bootstrap import Floats, Interval
from compressor.evaluation.evaluation import Evaluation, Run, find_evaluation
from compressor.evaluation.records import Records
from compressor.model import Model
from compressor.profiling.measure import clock_of, seconds_in_turns, threads
from compressor.profiling.resident import resident_bytes
from compressor.search.budget import level_of_look
from compressor.search.rivals import ONNX, onnx_file, onnx_int8, tried
from compressor.search.trial import Setting, fresh_model, module_run
from worker.artifact import load_artifact, read_manifest
from worker.manifest import PROGRAM
from worker.runtime import keep_freed_memory
from worker.shard import load_stages

EAGER: Final = "PyTorch, uncompiled"

ROUNDS: Final = 25
TIMING_S: Final = 60.0
RESIDENT_TURNS: Final = 3


def shard_run(folder: Path, setting: Setting) -> Run:
    """Runs an artifact as it is served: its stages one after the other, each in the runtime that was the fastest."""
    return load_stages(load_artifact(folder), stages=setting.stages, device=setting.device, key=setting.machine_key)


def artifact_seconds(
    setting: Setting, folders: Sequence[Path], batches: Mapping[str, Sequence[torch.Tensor]]
) -> dict[str, list[float]]:
    """By batch: median seconds of each artifact, all its stages one after the other on one thread, taken in turns."""
    keep_freed_memory()
    return median_seconds({str(folder): shard_run(folder, setting) for folder in folders}, batches, setting.device)


def median_seconds(
    runs: Mapping[str, Run], batches: Mapping[str, Sequence[torch.Tensor]], device: str
) -> dict[str, list[float]]:
    """By batch: median seconds of each run on one thread."""
    found: dict[str, list[float]] = {}
    with threads(1):
        for label, inputs in batches.items():
            taken = seconds_in_turns(
                tuple(runs.values()),
                inputs,
                clock=clock_of(device),
                rounds=ROUNDS,
                least_rounds=5,
                enough_s=TIMING_S / len(batches),
            )
            found[label] = [statistics.median(each) for each in taken]
    return found


def artifact_bytes(setting: Setting, folders: Sequence[Path]) -> list[float]:
    """Bytes of each artifact: on disk where size is the objective, else resident.

    Raises:
        Internal: memory could not be measured.
    """
    if setting.objective.kind == "size":
        return [float(disk_bytes(folder)) for folder in folders]
    objective = setting.objective
    grown = resident_bytes(
        [*folders] * RESIDENT_TURNS,
        objective.rows,
        objective.length,
        stages=setting.stages,
        device=setting.device,
        key=setting.machine_key,
    )
    return [statistics.median(item.ran for item in grown[place :: len(folders)]) for place in range(len(folders))]


def artifact_answers(setting: Setting, folder: Path) -> list[float]:
    """What an artifact answers to the calibration data, as `compressor.search.trial.judge` has it of a module.

    Raises:
        ShardlineError: there is no figure: answers are no numbers, or it cannot run.
    """
    evaluation = find_evaluation(setting.evaluation)
    with threads(1):
        answers = evaluation.answers(shard_run(folder, setting), fresh_model(setting), setting.calibration)
    evaluation.interval(answers, setting.calibration, seed=setting.seed)  # refuses what is not a number
    found: list[float] = answers.tolist()
    return found


def disk_bytes(folder: Path, *, program_only: bool = False) -> int:
    """Of all files of an artifact that its manifest names: the program, compiled packages, and the handler's."""
    return sum(file.bytes for name, file in read_manifest(folder).files.items() if not program_only or name == PROGRAM)


def compare(
    setting: Setting, folders: Mapping[str, Path], batches: Mapping[str, Sequence[torch.Tensor]], work: Path
) -> dict[str, Any]:
    """Median seconds, by name and batch, of these artifacts and of the rivals that are here; and why one is not.

    {"seconds": {name: {batch: seconds}}, "problems": {name: why}}
    """
    keep_freed_memory()
    model = fresh_model(setting)
    runs: dict[str, Run] = {EAGER: module_run(model.module, setting.device)}
    runs |= {name: shard_run(folder, setting) for name, folder in folders.items()}
    problems = {}
    if setting.device == "cpu":
        rival = tried(lambda: _ran(onnx_int8(fresh_model(setting), onnx_file(work, setting.key)), batches))
        if isinstance(rival, str):
            problems[ONNX] = rival
        else:
            runs[ONNX] = rival
    found = median_seconds(runs, batches, setting.device)
    seconds = {name: {label: found[label][place] for label in batches} for place, name in enumerate(runs)}
    return {"seconds": seconds, "problems": problems}


def _ran(run: Run, batches: Mapping[str, Sequence[torch.Tensor]]) -> Run:
    """The run, after it has shown that it takes all of the batches."""
    for inputs in batches.values():
        run(inputs)
    return run


class HeldOut:
    """Held-out data, and how often they were asked: each further look asks for more certainty (see `budget`)."""

    def __init__(self, evaluation: Evaluation, model: Model, records: Records, seed: int) -> None:
        self._evaluation = evaluation
        self._model = model
        self.records = records
        self._seed = seed
        self._base: Floats | None = None
        self.looks = 0

    def base(self, run: Run) -> Interval:
        """The uncompressed model's figure. Must come first."""
        with threads(1):
            self._base = self._evaluation.answers(run, self._model, self.records)
        return self._evaluation.interval(self._base, self.records, seed=self._seed)

    def look(self, run: Run) -> tuple[Interval, Interval]:
        """A model's figure, and its drop from the uncompressed model's at the level that this look asks for."""
        if self._base is None:
            raise RuntimeError("the uncompressed model was not judged")
        self.looks += 1
        figure, drop = self._judged(run, level_of_look(self.looks))
        return figure, drop

    def provable(self, look: int, allowed: float) -> bool:
        """Whether the `look`-th look could prove that no more than `allowed` is lost, were no answer to change."""
        return self._evaluation.records_needed(allowed, level=level_of_look(look)) <= len(self.records)

    def aside(self, run: Run) -> tuple[Interval, Interval]:
        """The same for a model among which nothing is chosen, such as a rival: it is no look."""
        return self._judged(run, 0.95)

    def _judged(self, run: Run, level: float) -> tuple[Interval, Interval]:
        if self._base is None:
            raise RuntimeError("the uncompressed model was not judged")
        with threads(1):
            answers = self._evaluation.answers(run, self._model, self.records)
        return (
            self._evaluation.interval(answers, self.records, seed=self._seed),
            self._evaluation.proven_drop(answers, self._base, self.records, level=level, seed=self._seed),
        )
