"""Where measurements are asked for: each comes from the store, or is made as a trial and put there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from compressor.compress import compress_
from compressor.evaluation.bootstrap import Floats
from compressor.model import Model
from compressor.profiling.measure import tiled
from compressor.search.fan_out import Failed, FanOut, Job
from compressor.search.groups import Candidate, Group
from compressor.search.layer_programs import LayerCall, layer_calls, layer_digest
from compressor.search.pace import Kind, Pace
from compressor.search.store import Result, Store, key_of
from compressor.search.trial import (
    Setting,
    Timed,
    block_and_layer_steps,
    build,
    build_layer,
    clocked,
    context_of,
    fresh_model,
    judge,
    seconds_of,
    timed_inputs,
)
from compressor.step import Step
from compressor.steps import described
from worker.runtime import instruction_set

ROUNDS: Final = 15
TIMING_S: Final = 40.0
"""Of one timing of several programs in turns."""
LAYER_ROUNDS: Final = 30

Recipe = tuple[Step, ...]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Judged:
    """A recipe on the calibration data. distance: of its outputs from the uncompressed model's, squared and relative.

    bytes: of its weights as they are stored. problem: why there is nothing else.
    """

    answers: Floats
    distance: float = 0.0
    bytes: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Unit:
    """One layer as a program of its own: what is built and timed once for all layers that are alike."""

    key: str
    layer: nn.Module
    call: LayerCall
    steps: Recipe


class Laboratory:
    """`until`: of `time.monotonic`; no trial is begun after it, and what was not measured is missing from answers."""

    def __init__(self, setting: Setting, store: Store, fan_out: FanOut, pace: Pace, say: Say) -> None:
        self.setting = setting
        self.pace = pace
        self.say = say
        self._store = store
        self._fan_out = fan_out
        self._plain: dict[Group, list[tuple[Unit, int]]] = {}

    @cached_property
    def model(self) -> Model:
        """The source's model, not to be changed."""
        return fresh_model(self.setting)

    def alone(self, job: Job) -> Any:
        """Runs a module's function on the setting, and nothing beside it."""
        return self._fan_out.alone(job)

    def judged(self, recipes: Sequence[Recipe], what: str, until: float) -> dict[Recipe, Judged]:
        """Each recipe on the calibration data, side by side."""
        jobs = {
            recipe: (self._key("judge", described(recipe)), (judge, (described(recipe),)))
            for recipe in dict.fromkeys(recipes)
        }
        found = self._each(dict(jobs.values()), what, until, "judge")
        return {
            recipe: Judged(
                np.array(result.get("answers", ())),
                result.get("distance", 0.0),
                result.get("bytes", 0),
                result.get("problem", ""),
            )
            for recipe, (key, _) in jobs.items()
            if (result := found.get(key)) is not None
        }

    def timed(
        self, recipes: Sequence[Recipe], what: str, until: float
    ) -> tuple[dict[Recipe, float], dict[Recipe, str]]:
        """Seconds of the whole model after each recipe at the objective's sizes: built side by side, timed in turns.

        And why one cannot be built.
        """
        keys = {recipe: self._machine_key("build", described(recipe)) for recipe in dict.fromkeys(recipes)}
        jobs: dict[str, Job] = {
            key: (build, (described(recipe), self._store.files / f"{key}.pt2")) for recipe, key in keys.items()
        }
        built = self._each(jobs, f"compiling {what}", until, "build")
        inputs = timed_inputs(self.model, self.setting.objective.sizes(self.model))
        ready = {recipe: built[key] for recipe, key in keys.items() if "file" in built.get(key, {})}
        problems = {
            recipe: str(built[key]["problem"]) for recipe, key in keys.items() if "problem" in built.get(key, {})
        }
        for recipe, problem in problems.items():
            self.say(f"{_named(recipe)} is left out: {problem}")
        seconds = self._seconds(
            {recipe: (result, inputs) for recipe, result in ready.items()},
            f"timing {what}",
            rounds=ROUNDS,
            kind="timing",
        )
        return dict(zip(ready, seconds, strict=True)), problems

    def layer_seconds(self, groups: Sequence[Group], until: float) -> dict[tuple[str, str], float]:
        """By group and treatment ("": none): seconds of the group's layers, each as a program of its own.

        Layers that are alike are built and timed once, and groups of such layers are taken to take a treatment alike. A
        group is left out where one of its layers cannot be measured.
        """
        needed: dict[tuple[str, str], list[tuple[Unit, int]]] = {}
        alike: dict[tuple[str, str], list[tuple[Unit, int]]] = {}
        for group in groups:
            plain = self._plain_units(group)
            kind = repr([(unit.key, count) for unit, count in plain])
            needed[group.name, ""] = plain
            for candidate in group.candidates:
                place = kind, candidate.treatment
                if place not in alike:
                    alike[place] = self._units(group, candidate)
                needed[group.name, candidate.treatment] = alike[place]
        units = {unit.key: unit for listed in needed.values() for unit, _ in listed}
        jobs: dict[str, Job] = {
            unit.key: (
                build_layer,
                (unit.layer, unit.call, described(unit.steps), self._store.files / f"{unit.key}.pt2"),
            )
            for unit in units.values()
        }
        built = self._each(jobs, f"compiling {len(jobs)} kinds of layers", until)
        ready = {key: result for key, result in built.items() if "file" in result}
        timed = self._seconds(
            {key: (result, (tiled(units[key].call.small, units[key].call.shape),)) for key, result in ready.items()},
            f"timing {len(ready)} kinds of layers",
            rounds=LAYER_ROUNDS,
        )
        seconds = dict(zip(ready, timed, strict=True))
        return {
            place: sum(seconds[unit.key] * count for unit, count in listed)
            for place, listed in needed.items()
            if all(unit.key in seconds for unit, _ in listed)
        }

    def _plain_units(self, group: Group) -> list[tuple[Unit, int]]:
        key = replace(group, candidates=())
        if key not in self._plain:
            self._plain[key] = self._units(group, None)
        return self._plain[key]

    def _units(self, group: Group, candidate: Candidate | None) -> list[tuple[Unit, int]]:
        """The group's layers after the candidate, and how often each is called."""
        whole, own = block_and_layer_steps(candidate.steps if candidate else (), group.layers)
        module = self.model.module
        if whole:
            changed = fresh_model(self.setting)
            module = compress_(changed.module, *whole, context=context_of(self.setting, changed)).module
        there = [name for name, _ in module.named_modules() if name in group.layers]
        small = tuple(item.example for item in self.model.inputs)
        sizes = self.setting.objective.sizes(self.model)
        calls = layer_calls(
            module, there, small, timed_inputs(self.model, self._others()), timed_inputs(self.model, sizes)
        )
        found: dict[str, tuple[Unit, int]] = {}
        for name in there:
            layer = module.get_submodule(name)
            steps = tuple(step.model_copy(update={"layers": ("0",)}) for step in own if name in step.targets(module))
            for call in calls[name]:
                key = self._machine_key("layer", [layer_digest(layer, call), described(steps)])
                unit, count = found.get(key, (Unit(key, layer, call, steps), 0))
                found[key] = (unit, count + 1)
        return list(found.values())

    def _others(self) -> dict[str, int]:
        """Sizes that differ from the examples' in every named axis that may."""
        found: dict[str, int] = {}
        most = {axis.name: axis.maximum for axis in self.model.axes}
        for item in self.model.inputs:
            for name, size in zip(item.axes, item.example.shape, strict=True):
                if name is not None:
                    limit = most.get(name)
                    found[name] = size + 1 if limit is None or size < limit else max(1, size - 1)
        return found

    def _each(self, jobs: Mapping[str, Job], what: str, until: float, kind: Kind | None = None) -> dict[str, Result]:
        """What the store has, and what is measured now."""
        found = {key: result for key in jobs if (result := self._store.get(key)) is not None}
        missing: dict[str, Job] = {
            key: (clocked, (function, *given)) for key, (function, given) in jobs.items() if key not in found
        }
        for key, result in self._fan_out.each(missing, until) if missing else ():
            if isinstance(result, Failed):  # not stored: whoever searches again tries it again
                found[key] = {"problem": result.why}
            else:
                self._store.put(key, result)
                found[key] = result
            if len(found) == len(jobs) or len(found) % max(1, len(jobs) // 10) == 0:
                self.say(f"{what}: {len(found)} of {len(jobs)}")
        if kind is not None:
            for result in found.values():
                if "took_s" in result:  # what broke down tells nothing of how long such work takes
                    self.pace.note(kind, result["took_s"])
        return found

    def _seconds(
        self,
        programs: Mapping[Any, tuple[Result, tuple[torch.Tensor, ...]]],
        what: str,
        *,
        rounds: int,
        kind: Kind | None = None,
    ) -> list[float]:
        """Seconds of each, timed together: programs that are compared are timed in the same minute."""
        if not programs:
            return []
        listed = [
            Timed(self._store.files / result["file"], result["runtime"], inputs) for result, inputs in programs.values()
        ]
        told = [[item.file.name, [list(tensor.shape) for tensor in item.inputs]] for item in listed]
        key = self._machine_key("seconds", [told, rounds])
        found = self._store.get(key)
        if found is None:
            self.say(what)
            found = self._fan_out.alone((clocked, (_seconds_of, listed, rounds, TIMING_S)))
            self._store.put(key, found)
        if kind is not None:
            self.pace.note(kind, found.get("took_s", 0.0))
        return [float(seconds) for seconds in found["seconds"]]

    def _key(self, *told: Any) -> str:
        return key_of([self.setting.key, *told])

    def _machine_key(self, *told: Any) -> str:
        return key_of([self.setting.key, instruction_set(self.setting.device), str(self.setting.runtime), *told])


def _seconds_of(setting: Setting, programs: Sequence[Timed], rounds: int, budget_s: float) -> Result:
    return {"seconds": seconds_of(programs, setting.device, rounds, budget_s)}


def _named(recipe: Recipe) -> str:
    return " + ".join(f"{step.kind} of {len(step.layers)}" for step in recipe) or "nothing"
