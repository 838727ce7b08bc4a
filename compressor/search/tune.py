"""The search: the fastest mix of compression steps that keeps an accuracy budget, proven on held-out data.

Method: compile, time and judge the whole model in one treatment after the other, so that there is an answer early; then
time what each treatment does to each distinct layer as a compiled program, and judge on calibration data what it harms
in each group of layers; solve for the best mixes; judge and repair as wholes those that promise to beat what is at
hand; compile what keeps the budget; and ask the held-out data, fastest first, until one answers yes. Of a time limit,
the last word's share is kept free throughout, by how long such work took so far.
"""

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch

from compressor.capture import outputs_of
from compressor.evaluation.bootstrap import Interval
from compressor.evaluation.evaluation import Evaluation, find_evaluation, make_importable
from compressor.evaluation.records import Records, read_records, sample, split, without_overlap
from compressor.model import Model
from compressor.recipe import Recipe as Packaging
from compressor.recipe_file import read_calibration, read_recipe
from compressor.search.budget import Budget, check_provable
from compressor.search.builder import Builder, adopted
from compressor.search.calibration import MOST_ROWS, remove_unnamed, write_calibration
from compressor.search.explore import explore
from compressor.search.fan_out import FanOut, Here, ray_tasks
from compressor.search.finals import HeldOut, shard_run
from compressor.search.groups import find_groups
from compressor.search.laboratory import Judged, Laboratory
from compressor.search.lessons import read_lessons
from compressor.search.mixing import CALIBRATION_LEVEL, MOST_GROUPS, Mixing, times_of
from compressor.search.objective import Objective
from compressor.search.pace import Pace
from compressor.search.report import Report
from compressor.search.store import Store, key_of
from compressor.search.treatments import Treatment, everywhere, trains, usual_treatments
from compressor.search.trial import Setting, context_of, fresh_model
from compressor.search.verdict import Bench, choose
from compressor.search.whole_only import try_whole_only, whole_only, why_not
from compressor.search.written import Asked, report_of, rivals_of, write_report
from compressor.sources.sources import code_of, read_source
from compressor.step import Training
from worker.errors import InvalidRequest, Overloaded
from worker.manifest import MANIFEST
from worker.runtime import check_device
from worker.seal import DEFAULT_KEY

WORK: Final = ".tune"
"""The search's folder in the model's."""

CALIBRATION_RECORDS: Final = 600
CALIBRATION_SHARE: Final = 1 / 3
"""Of the data, where there are no others to calibrate with."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for.

    data: labelled records; what is returned is proven on them. calibration: others, by which the search decides; None:
        a part of `data`, which is then held out no more.
    evaluate: see `compressor.evaluation.evaluation.find_evaluation`.
    treatments: what may be done to layers, the most promising first; empty: what is usual for the device and the
        objective.
    training: what treatments that train learn from, as a recipe names it: a file, or module:function.
    time_limit_s: seconds after which no more is tried; what is returned is then compared with others and reported.
        None: there is no limit.
    stages: numbers of stages to cut and compile for. What is returned is judged and timed in the first.
    workers: trials side by side; 0: one after the other in this process, without Ray. address: of a running Ray.
    calibration_records: the most that are used.
    keep: the search's folder stays, with every trial and package.
    """

    source: str | Path | Model
    out: Path
    evaluate: str
    data: Path
    max_drop: Budget
    objective: Objective
    calibration: Path | None = None
    drop_overlap: bool = False
    device: str = "cpu"
    time_limit_s: float | None = None
    treatments: tuple[Treatment, ...] = ()
    training: str | None = None
    stages: tuple[int, ...] = (1,)
    seed: int = 0
    workers: int = 0
    address: str | None = None
    runtime: Literal["fastest", "eager"] = "fastest"
    calibration_records: int = CALIBRATION_RECORDS
    keep: bool = False
    key: Path = DEFAULT_KEY


def tune(request: Request, say: Say = lambda _: None) -> Report:
    """Searches, writes the artifact as the next version under `request.out`, and recipe.yaml, report.json and
    report.html beside it.

    What was measured stays in `request.out`/.tune when the search is interrupted, and the same request goes on there.

    Raises:
        ShardlineError: the source, the data or the evaluation are not what they must be; or another search is at work.
        OSError: there is no room.
    """
    began = time.monotonic()
    check_device(request.device)
    make_importable()
    say("reading the model and the data")
    model = request.source if isinstance(request.source, Model) else read_source(request.source)
    request = replace(request, objective=request.objective.fitted(model))
    outputs_of(model)
    evaluation = find_evaluation(request.evaluate)
    calibration, held_out = read_data(request, evaluation)
    # A share of an accuracy is never more than so many points.
    check_provable(evaluation, held_out, request.max_drop.amount)
    treatments = request.treatments or usual_treatments(request.device, timed=request.objective.timed)
    lessons = read_lessons(
        request.training, treatments, model, seed=request.seed, held_out=held_out, evaluation=evaluation
    )
    with _work_folder(request.out) as work:
        setting = _setting(request, model, evaluation, calibration, treatments)
        store = Store(work)
        limit = began + request.time_limit_s if request.time_limit_s is not None else float("inf")
        with _fan_out(request, setting) as fan_out:
            search = _Search(
                request=request,
                setting=setting,
                treatments=treatments,
                store=store,
                fan_out=fan_out,
                lessons=lessons,
                limit=limit,
                say=say,
            )
            report = search.report(evaluation, calibration, held_out, began)
        if not request.keep:
            shutil.rmtree(work, ignore_errors=True)
    return report


def read_data(request: Request, evaluation: Evaluation) -> tuple[Records, Records]:
    """(calibration, held-out) records, which share none.

    Raises:
        InvalidRequest: a file is not a table of records, or both hold the same ones.
    """
    data = read_records(request.data, evaluation.names)
    if request.calibration is None:
        first, held_out = split(data, evaluation.inputs(data), CALIBRATION_SHARE, request.seed)
        return sample(first, request.calibration_records, request.seed), held_out
    other = read_records(request.calibration, evaluation.names)
    if set(other.columns) != set(data.columns):
        raise InvalidRequest(
            f"calibration {str(request.calibration)!r}: its columns are {', '.join(other.columns)}; those of the data "
            f"are {', '.join(data.columns)}"
        )
    apart = without_overlap(other, data, evaluation.inputs(data), drop=request.drop_overlap)
    return sample(apart, request.calibration_records, request.seed), data


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Overloaded(f"{work}: another search is at work there; wait for it, or give another --out") from error
        yield work


@contextmanager
def _fan_out(request: Request, setting: Setting) -> Iterator[FanOut]:
    if request.workers == 0:
        yield Here(setting)
        return
    with ray_tasks(setting, cpus=request.workers, device=request.device, address=request.address) as tasks:
        yield tasks


def _setting(
    request: Request,
    model: Model,
    evaluation: Evaluation,
    calibration: Records,
    treatments: Sequence[Treatment],
) -> Setting:
    key = search_key(request, model, calibration)
    path = calibration_file(request, key)
    needed = any(step.needs_calibration() for each in treatments for step in everywhere(each))
    if needed and not path.is_file():
        write_calibration(path, evaluation, model, calibration, request.seed)
    return Setting(
        source=request.source if not isinstance(request.source, Path) else str(request.source),
        evaluation=request.evaluate,
        calibration=calibration,
        objective=request.objective,
        device=request.device,
        stages=request.stages[0],
        seed=request.seed,
        runtime=request.runtime,
        key=key,
        import_from=tuple(os.path.abspath(place) for place in sys.path if place in {"", os.getcwd()}),
        inputs=read_calibration(str(path), model, MOST_ROWS) if needed else (),
        machine_key=request.key,
    )


def search_key(request: Request, model: Model, calibration: Records) -> str:
    """A hash of all that trials depend on: what was measured under another key is not this search's."""
    told = [
        Packaging(request.source).key(model),
        request.evaluate,
        code_of(request.evaluate) if ":" in request.evaluate else "",
        calibration.digest(),
        request.device,
        request.seed,
        request.runtime,
        torch.__version__,
        _code_digest(),
    ]
    return key_of(told)


def calibration_file(request: Request, key: str) -> Path:
    """Beside the versions: recipes with steps that look at activations name it."""
    return request.out / f"calibration-{key[:12]}.npz"


def _code_digest() -> str:
    """Changes with the code that makes programs: what older code measured is not this code's."""
    digest = hashlib.sha256()
    here = Path(__file__).parent.parent
    ours = (path for kind in ("*.py", "*.cpp") for path in here.rglob(kind) if here / "search" not in path.parents)
    for path in sorted([*ours, *(here.parent / "worker").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Lost:
    """How much is lost, on which data, and how much may be."""

    evaluation: Evaluation
    calibration: Records
    allowed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """One search, from the uncompressed artifact to the report."""

    request: Request
    setting: Setting
    treatments: Sequence[Treatment]
    store: Store
    fan_out: FanOut
    lessons: Training | None
    limit: float
    say: Say
    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - began

    def report(self, evaluation: Evaluation, calibration: Records, held_out: Records, began: float) -> Report:
        request, setting = self.request, self.setting
        builder = Builder(
            setting,
            request.out / WORK,
            calibration_file(request, setting.key),
            request.stages,
            self.say,
            request.training,
            request.key,
            self.lessons,
        )
        pace = Pace(Store(request.out / WORK / "pace"), setting.key, self.limit, self.fan_out.width)
        with self._phase("uncompressed artifact"), pace.clocked("package"):
            baseline = builder.built(())
        lab = Laboratory(setting, self.store, self.fan_out, pace, self.say)
        asked = HeldOut(evaluation, lab.model, held_out, request.seed)
        with self._phase("held-out data"):
            self.say("asking the held-out data about the uncompressed model")
            with pace.clocked("look"):
                base = asked.base(shard_run(baseline, setting))
        allowed = request.max_drop.allowed(base.value)
        check_provable(evaluation, held_out, allowed)
        with self._phase("search"):
            mixing = self._mixing(lab, builder, baseline, Lost(evaluation, calibration, allowed))
        bench = Bench(lab, builder, asked, baseline, base, allowed)
        with self._phase("held-out data"):
            verdict = choose(bench, mixing, self.say)
        with self._phase("report"):
            # As the artifact tells it: what was measured while it was made is in it, and is not measured again.
            recipe = read_recipe(verdict.folder / MANIFEST) if verdict.point else None
            asked_for = Asked(
                source=str(request.source)
                if not isinstance(request.source, Model)
                else type(lab.model.module).__name__,
                evaluate=request.evaluate,
                budget=str(request.max_drop),
                objective=request.objective,
                setting=setting,
                calibration=calibration,
                held_out=held_out,
                evaluation=evaluation,
            )
            self.say("comparing what is returned with others")
            rivals = rivals_of(asked_for, bench, verdict)
            self.say(f"writing: {verdict.reason}")
            folder = adopted(verdict.folder, request.out)
            report = report_of(
                asked_for,
                bench,
                mixing,
                verdict,
                folder=folder,
                recipe=recipe,
                rivals=rivals,
                trials=len(self.store),
            )
        report = replace(report, seconds=self.spent | {"all": time.monotonic() - began})
        write_report(request.out, report, recipe)
        if recipe is None or recipe.calibration is None:
            remove_unnamed(builder.calibration, request.out)
        return report

    def _mixing(self, lab: Laboratory, builder: Builder, baseline: Path, lost: "Lost") -> Mixing:
        found = lab.judged([()], "the uncompressed model on calibration data", times_of(lab).wholes)
        base = found.get((), Judged(np.empty(0)))
        if base.problem:
            raise InvalidRequest(base.problem)

        def drop(judged: Judged) -> Interval:
            return lost.evaluation.drop(
                judged.answers, base.answers, lost.calibration, level=CALIBRATION_LEVEL, seed=self.request.seed
            )

        mixing = Mixing((), drop, lost.allowed, self.request.objective.timed)
        if found:
            self.say("finding what may be done to which layers")
            model = fresh_model(self.setting)
            context = context_of(self.setting, model)
            of_layers = [item for item in self.treatments if not trains(item)]
            mixing.groups = find_groups(model.module, of_layers, context, most=MOST_GROUPS)
            others = whole_only(self.treatments, mixing.groups)
            self._check_any(lab, builder, mixing, others)

            def try_others() -> None:
                try_whole_only(lab, mixing, builder, baseline, others)

            explore(lab, mixing, base, [item.name for item in of_layers], try_others)
        mixing.needed_s = lab.pace.costs.whole + lab.pace.costs.final
        return mixing

    def _check_any(self, lab: Laboratory, builder: Builder, mixing: Mixing, others: Sequence[Treatment]) -> None:
        """Raises InvalidRequest: no treatment can be done at all."""
        if mixing.groups:
            return
        why = {item.name: why_not(builder, lab, item) for item in others}
        if all(why.values()):
            told = "; ".join(f"{name}: {problem}" for name, problem in why.items())
            raise InvalidRequest(f"{type(lab.model.module).__name__}: no treatment can be done ({told})")
