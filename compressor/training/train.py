"""The one loop that trains: fine-tuning after any step, distillation, and training with penalties.

What is trained is a module that takes a batch and returns its loss (`Supervised` here, the ones of
`compressor.training.distill`), so that the loop knows nothing of teachers. Every random choice is drawn from the seed
and the number of the step: a training that was interrupted and goes on from its checkpoint gives what one that was not
interrupted gives.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from compressor.step import Training, seeded
from compressor.training.checkpoint import Checkpoint, NoCheckpoint
from compressor.training.peers import Alone, Peers
from worker.errors import DeadlineExceeded, InvalidRequest

Batch = tuple[tuple[Tensor, ...], Tensor]
"""(inputs, targets), each [rows, …]."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Course(BaseModel):
    """How it is trained; what it is trained on and towards is not said here.

    epochs: passes over the data.
    rate: the learning rate at its highest.
    optimiser: "sgd" with Nesterov momentum, or "adamw".
    decay: of weights with two dimensions or more, for each unit of the rate; biases and norms are left alone.
    warm_up: the part of all steps during which the rate rises from zero; it then falls as half a cosine to zero
        (Loshchilov and Hutter, 2017).
    clip: the largest norm of all gradients together; 0: any.
    bfloat16: products and convolutions are computed in bfloat16, weights stay in float32. Half the time on CPUs that
        have its instructions, and much slower on others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 1
    rate: Positive = 0.01
    optimiser: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    decay: NotNegative = 1e-4
    warm_up: Fraction = 0.1
    clip: NotNegative = 0.0
    bfloat16: bool = False


class Hook:
    """Something that takes part in a training: a penalty on weights, or a schedule that prunes little by little.

    With several workers each has its own copy, and all do the same.
    """

    def begin(self, steps: int) -> None:
        """Told once, before the first step, how many there will be; also where a training goes on."""

    def penalty(self) -> Tensor | None:
        """What is added to the loss of the coming step, a scalar."""
        return None

    def after(self, step: int) -> None:
        """Called when the weights have been changed for the step-th time, counted from 1."""

    def state(self) -> dict[str, Tensor]:
        """What must be known to go on: saved with a checkpoint."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state` gave."""


class Supervised(nn.Module):
    """Learns from the targets alone: (inputs, targets) → loss."""

    def __init__(self, model: nn.Module, loss: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        return self._loss(self.model(*inputs), targets)


@dataclass(frozen=True, slots=True)
class Trained:
    """steps: in all, those before an interruption included. losses: the mean of each epoch. seconds: of this call."""

    steps: int
    losses: tuple[float, ...]
    seconds: float


class Trainer(Protocol):
    """Runs a training: `train_` in this process, `compressor.training.train_ray.RayTrainer` on many."""

    def __call__(
        self,
        objective: nn.Module,
        data: Training,
        course: Course,
        *,
        hooks: Sequence[Hook] = (),
        seed: int = 0,
        device: str = "cpu",
        say: Callable[[str], None] = lambda _: None,
    ) -> Trained:
        """Trains `objective` in place. See `train_`."""


def _silent(_: str) -> None:
    pass


def train_(
    objective: nn.Module,
    data: Training,
    course: Course,
    *,
    hooks: Sequence[Hook] = (),
    seed: int = 0,
    device: str = "cpu",
    say: Callable[[str], None] = _silent,
    checkpoint: Checkpoint | None = None,
    every: int = 0,
    deadline: float = math.inf,
    peers: Peers | None = None,
) -> Trained:
    """Trains those of the objective's parameters that require a gradient, in place.

    Args:
        objective: called with a batch's inputs and targets; returns their mean loss.
        data: its loss is not used here, only its batches.
        checkpoint: where the training is kept and goes on from; None: nowhere.
        every: steps between two checkpoints; 0: one after each epoch.
        deadline: by `time.monotonic()`; the training stops between two steps, with a checkpoint.
        peers: the other processes that train the same objective; each batch is shared out among them.

    Raises:
        InvalidRequest: there is nothing to train or no data, the loss is no number, or the checkpoint is of another
            training.
        DeadlineExceeded: it ran out of time. Like Ctrl-C, this leaves the objective half trained: use it only to go on.
    """
    run = _Run(objective, data, course, hooks, seed, device, say, checkpoint or NoCheckpoint(), every, peers or Alone())
    began = time.perf_counter()
    with run.prepared() as module:
        while run.step < run.steps:
            for place, batch in run.epoch():
                if run.peers.any(time.monotonic() > deadline):
                    run.save()
                    raise DeadlineExceeded(f"training stopped after {run.step} of {run.steps} steps: out of time")
                run.advance(module, batch, place)
                if every and run.step % every == 0 and run.step % len(run.data):
                    run.save()
            run.save()
    return Trained(run.step, tuple(run.losses), time.perf_counter() - began)


@dataclass(slots=True)
class _Run:
    """One training as it goes: where it is, and what it does at each step."""

    objective: nn.Module
    data: Training
    course: Course
    hooks: Sequence[Hook]
    seed: int
    device: str
    say: Callable[[str], None]
    checkpoint: Checkpoint
    every: int
    peers: Peers
    step: int = 0
    steps: int = 0
    total: float = 0.0  # of the losses of this epoch so far
    losses: list[float] = field(default_factory=list)
    optimiser: torch.optim.Optimizer = field(init=False)

    @contextmanager
    def prepared(self) -> Iterator[nn.Module]:
        """The objective as it is to be called, on its device; afterwards it is as it was, but trained."""
        if len(self.data) < 1:
            raise InvalidRequest("there is no training data: an epoch has no batch")
        trained = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        if not trained:
            raise InvalidRequest("there is nothing to train: no parameter requires a gradient")
        self.steps = self.course.epochs * len(self.data)
        training = self.objective.training
        random = torch.random.get_rng_state()
        try:
            put_(self.objective, self.device)
            self.objective.train()
            keep_statistics_(self.objective)
            self.optimiser = optimiser(self.objective, self.course)
            for hook in self.hooks:
                hook.begin(self.steps)
            self.resume()
            with torch.enable_grad(), self.peers.joined(self.objective) as module:
                yield module
        finally:
            put_(self.objective, "cpu", torch.contiguous_format)
            self.objective.train(training)
            for parameter in trained:
                parameter.grad = None
            torch.random.set_rng_state(random)

    def epoch(self) -> Iterable[tuple[int, Batch]]:
        """The batches of this epoch that are still to come, each with its place in it."""
        number, done = divmod(self.step, len(self.data))
        place = -1
        for place, batch in enumerate(self.data.batches(number)):
            if place >= len(self.data):
                raise InvalidRequest(f"epoch {number} has more than the {len(self.data)} batches that the data promise")
            if place >= done:
                yield place, batch
        if place + 1 < len(self.data):
            raise InvalidRequest(f"epoch {number} has {place + 1} batches; the data promise {len(self.data)}")

    def advance(self, module: nn.Module, batch: Batch, place: int) -> None:
        """One step."""
        torch.manual_seed(seeded(self.seed, f"step {self.step} of {self.peers.rank}").initial_seed())
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.course, self.step, self.steps)
        inputs, targets, part = self._mine(batch)
        with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.course.bfloat16):
            loss = module(inputs, targets)
        whole = loss * part
        for hook in self.hooks:
            extra = hook.penalty()
            whole = whole if extra is None else whole + extra
        mean = self.peers.mean(whole.detach())
        if not math.isfinite(mean):
            raise InvalidRequest(
                f"the loss is {mean} at step {self.step + 1} of {self.steps}; lower the rate ({self.course.rate}), set "
                "clip, or look for such values in the data"
            )
        self.optimiser.zero_grad(set_to_none=True)
        whole.backward()
        if self.course.clip:
            nn.utils.clip_grad_norm_(self.objective.parameters(), self.course.clip)
        self.optimiser.step()
        self.step += 1
        for hook in self.hooks:
            hook.after(self.step)
        self.total += mean
        if place + 1 == len(self.data):
            self.losses.append(self.total / len(self.data))
            self.total = 0.0
            self.say(f"epoch {len(self.losses)} of {self.course.epochs}: loss {self.losses[-1]:.4f}")

    def _mine(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor, float]:
        """This process's rows, and what its mean loss counts so that the mean over processes is the batch's mean."""
        inputs, targets = batch
        rows = len(targets)
        if any(len(tensor) != rows for tensor in inputs):
            told = [len(tensor) for tensor in inputs]
            raise InvalidRequest(f"a batch has {rows} targets and inputs of {told} rows; they must be as many")
        if rows < self.peers.count:
            raise InvalidRequest(f"a batch of {rows} rows cannot be shared by {self.peers.count} workers")
        mine = slice(rows * self.peers.rank // self.peers.count, rows * (self.peers.rank + 1) // self.peers.count)
        part = (mine.stop - mine.start) * self.peers.count / rows
        return tuple(tensor[mine].to(self.device) for tensor in inputs), targets[mine].to(self.device), part

    def save(self) -> None:
        self.checkpoint.write(
            {
                "format": _FORMAT,
                "course": self._told(),
                "step": self.step,
                "total": self.total,
                "losses": list(self.losses),
                "objective": self.objective.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "hooks": [hook.state() for hook in self.hooks],
            }
        )

    def resume(self) -> None:
        saved = self.checkpoint.read()
        if saved is None:
            return
        if saved.get("format") != _FORMAT or saved.get("course") != self._told():
            raise InvalidRequest(
                f"{self.checkpoint}: is of another training ({saved.get('course')}, not {self._told()}); remove it or "
                "name another file"
            )
        try:
            self.objective.load_state_dict(saved["objective"])
            self.optimiser.load_state_dict(saved["optimiser"])
            for hook, state in zip(self.hooks, saved["hooks"], strict=True):
                hook.restore(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InvalidRequest(f"{self.checkpoint}: is of another model: {error}; remove it") from error
        self.step, self.total, self.losses = saved["step"], saved["total"], list(saved["losses"])
        self.say(f"goes on after step {self.step} of {self.steps}")

    def _told(self) -> str:
        return f"{self.course.model_dump_json(include=set(Course.model_fields))} seed {self.seed} steps {self.steps}"


_FORMAT: Final = 1


def optimiser(objective: nn.Module, course: Course) -> torch.optim.Optimizer:
    """The course's optimiser for what is to be trained; the rate is set at each step."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.dim() > 1], "weight_decay": course.decay},
        {"params": [parameter for parameter in trained if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if course.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=course.rate)
    return torch.optim.SGD(groups, lr=course.rate, momentum=course.momentum, nesterov=course.momentum > 0)


def rate_at(course: Course, step: int, steps: int) -> float:
    """The learning rate of the step that follows `step` done ones."""
    rising = course.warm_up * steps
    if step < rising:
        return course.rate * (step + 1) / (rising + 1)
    left = (step - rising) / max(1.0, steps - rising)
    return course.rate * 0.5 * (1 + math.cos(math.pi * left))


def keep_statistics_(objective: nn.Module) -> None:
    """Puts normalisations that are not trained into evaluation mode, so that their running statistics are frozen too.

    One without weights of its own is trained where something in the innermost module around it is.
    """
    modules = dict(objective.named_modules())
    for name, norm in modules.items():
        if isinstance(norm, _NormBase):
            place = name
            while place and not any(True for _ in modules[place].parameters()):
                place = place.rpartition(".")[0]
            if not any(parameter.requires_grad for parameter in modules[place].parameters()):
                norm.eval()


def put_(module: nn.Module, device: str | torch.device, layout: torch.memory_format | None = None) -> None:
    """Moves a module to a device; in the layout, by default the one in which it trains fastest.

    Convolutions over images train in a third less time on CPUs, and faster on GPUs, when channels come last.
    """
    images = any(isinstance(part, nn.Conv2d) for part in module.modules())
    chosen = layout or (torch.channels_last if images else torch.preserve_format)
    module.to(device, memory_format=chosen)  # type: ignore[call-overload]  # torch's stub leaves it out
