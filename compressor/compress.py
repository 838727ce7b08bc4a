"""Compresses a model by steps: checks them all, then does one after the other, and proves that each did something."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import nn

from compressor.capture import without_fast_path
from compressor.sources.sources import weights_digest
from compressor.step import Change, Context, GraphStep, Phase, Step, patterns_problem, stored_bytes
from worker.errors import InvalidRequest, ShardlineError, first_line

MOST_STEPS: Final = 1000
"""A recipe with more is not one that somebody wrote; a format for each layer of a large model is some hundreds."""


@dataclass(frozen=True, slots=True)
class Done:
    """A step that was done, with what it found out meanwhile: what it changed, and the seconds that it took."""

    step: Step
    changes: tuple[Change, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Compression:
    """What came of it. `module` is the model that was given, or what took its place where a step works on the graph.

    before, after: bytes that the weights take, as they are stored.
    """

    module: nn.Module
    done: tuple[Done, ...]
    before: int
    after: int

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(change for done in self.done for change in done.changes)


def compress_(model: nn.Module, *steps: Step, context: Context) -> Compression:
    """Compresses `model` by the steps, in place.

    Raises:
        InvalidRequest: some of the steps cannot work, with every reason in one message and `model` as it was; or a step
            changed nothing, or left a model on which later ones cannot work; or what came of it does not run.
        ShardlineError: a step failed; the model may be changed in part.
    """
    found = problems(model, steps, context)
    if found:
        raise InvalidRequest("; ".join(found))
    model.eval()
    if context.teacher is None and any(step.needs_teacher() for step in steps):
        context = replace(context, teacher=copy.deepcopy(model))
    _rehearse(model, steps, context)
    before = stored_bytes(model)
    digest = weights_digest(model)
    names = _names(model)
    done: list[Done] = []
    module = model
    for index, step in enumerate(steps):
        context.say(f"step {index + 1} of {len(steps)}: {step.kind}")
        began = time.perf_counter()
        changes = step.apply_(model, context)
        model.eval()
        if isinstance(step, GraphStep):
            with torch.no_grad():
                module, more = step.apply_graph(module, context)
            changes = [*changes, *more]
        after = weights_digest(module)
        if not changes or after == digest:
            raise InvalidRequest(_nothing(index, step))
        digest = after
        left = _names(model)
        if not names <= left:
            _check_what_comes(model, steps, index, context.say)
        names = left
        done.append(Done(step.settled(model), tuple(changes), time.perf_counter() - began))
    _check_that_it_runs(module, steps, context)
    return Compression(module, tuple(done), before, stored_bytes(module))


def _rehearse(model: nn.Module, steps: Sequence[Step], context: Context) -> None:
    """Does the steps to a copy, but trains nothing: so what only shows when others are done is told before any work.

    Formats are not tried: no later step takes what they made. Nor is a single step that leaves all layers in place, nor
    what comes after a step that takes away as much as an earlier training decides.

    Raises:
        InvalidRequest: a step cannot work on what those before it leave, or would change nothing.
    """
    count = max((index + 1 for index, step in enumerate(steps) if step.phase < Phase.QUANTIZE), default=0)
    if len(steps) < 2 or not (count > 1 or any(step.phase is Phase.STRUCTURE for step in steps)):
        return
    try:
        trial = copy.deepcopy(model)
    except RuntimeError:  # it holds what PyTorch does not copy, as results with a history: each step tells in its turn
        return
    context.say("trying the steps on a copy, without training")
    quiet = replace(context, say=lambda _: None)
    digest, trained = weights_digest(trial), False
    for index, step in enumerate(steps[:count]):
        trained = trained or step.phase is Phase.TRAIN
        if trained and step.depends_on_values():
            return
        try:
            step.rehearse_(trial, quiet)
        except ShardlineError as error:
            raise InvalidRequest(f"{_name(index, step)}: {error}") from error
        trial.eval()
        after = weights_digest(trial)
        if after == digest and step.phase is not Phase.TRAIN:
            raise InvalidRequest(_nothing(index, step))
        digest = after
        _check_what_comes(trial, steps, index, quiet.say)


def _check_what_comes(model: nn.Module, steps: Sequence[Step], place: int, say: Callable[[str], None]) -> None:
    """Asks the steps after `steps[place]` again, which took layers away, before anything else is done.

    A name of a layer that went is only told, where the step has others; one that was to be left out is not: another
    layer may have that place now.

    Raises:
        InvalidRequest: some cannot work any more.
    """
    found, renamed = [], False
    for index, step in enumerate(steps):
        if index <= place:
            continue
        gone = [one for one in step.layers if not one.startswith("!") and patterns_problem(model, (one,))]
        rest = tuple(one for one in step.layers if one not in gone)
        left = step.model_copy(update={"layers": rest}) if gone and step.takes and rest else step
        problem = left.problem(model, (*steps[place + 1 : index], left, *steps[index + 1 :]))
        if problem is not None:
            renamed = renamed or patterns_problem(model, step.layers) is not None
            found.append(f"{_name(index, step)}: {problem}")
        elif gone:
            say(f"{_name(index, step)}: {', '.join(gone)} went with {_name(place, steps[place])}")
    if found:
        names = ": later steps name the layers that are left, by the names that they then have" if renamed else ""
        raise InvalidRequest(f"{'; '.join(found)}; so it is after {_name(place, steps[place])}{names}")


def _check_that_it_runs(module: nn.Module, steps: Sequence[Step], context: Context) -> None:
    """Runs what came of it on the examples, where they are and it is for this machine's processor.

    Raises:
        InvalidRequest: it does not run: its code does more with its layers than to call them.
    """
    if not context.inputs or context.target != "cpu":
        return
    try:
        with torch.no_grad(), without_fast_path():
            module.eval()(*context.examples)
    except Exception as error:
        told = first_line(error)[:200]
        kinds = ", ".join(step.kind for step in steps)
        raise InvalidRequest(
            f"{type(module).__name__} does not run after {kinds} ({told}): its code does more with a layer than to "
            "call it, as to use its weight; leave that layer out"
        ) from error


def problems(model: nn.Module, steps: Sequence[Step], context: Context) -> list[str]:
    """Everything that keeps the steps from working on `model`, each named by its step; empty where they can."""
    if not steps:
        return ["there is no step: name at least one"]
    if len(steps) > MOST_STEPS:
        return [f"there are {len(steps)} steps; the most is {MOST_STEPS}"]
    found = order_problems(steps)
    for index, step in enumerate(steps):
        problem = step.problem(model, steps)
        kind = context.target.partition(":")[0]
        if problem is None and kind not in step.devices:
            problem = f"what it makes runs on {' or '.join(sorted(step.devices))}, not on {kind}"
        problem = problem or step.device_problem(context.target)
        problem = problem or step.teacher_problem(context.teacher or model)
        if problem is None and step.needs_calibration() and not context.calibration:
            problem = "it looks at activations and there is no calibration data; give some"
        if problem is None and step.needs_training() and context.training is None:
            problem = "it trains and there is no training data; give some"
        if problem is not None:
            found.append(f"{_name(index, step)}: {problem}")
    return found


def order_problems(steps: Sequence[Step]) -> list[str]:
    """Steps that stand after one that must come later.

    Training may stand between any two steps that change weights, so that pruning and training can take turns.
    """
    found: list[str] = []
    latest: Step | None = None
    for index, step in enumerate(steps):
        if step.phase is Phase.TRAIN and (latest is None or latest.phase < Phase.QUANTIZE):
            continue
        if latest is not None and step.phase < latest.phase:
            found.append(
                f'{_name(index, step)}: it stands after "{latest.kind}"; the order is '
                f"{' → '.join(phase.name.lower() for phase in Phase)}, and {step.phase.name.lower()} comes before "
                f"{latest.phase.name.lower()}"
            )
        else:
            latest = step
    if sum(isinstance(step, GraphStep) for step in steps) > 1:
        found.append("only one step can work on the captured graph; put the layers of both into one")
    return found


def _names(model: nn.Module) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_modules())


def _nothing(index: int, step: Step) -> str:
    return f"{_name(index, step)} changed nothing; leave it out, or give it other layers"


def _name(index: int, step: Step) -> str:
    return f'step {index + 1} ("{step.kind}")'
