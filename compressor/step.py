"""A step of a recipe: what is done to a model, by which layers it is done to, and what it may use.

A step is a frozen value: two that are equal do the same. What composes them is `compressor.compress`; which there are
is in `compressor.steps`.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from compressor.model import Input, Model
from worker.errors import InvalidRequest
from worker.nouns import Axis

if TYPE_CHECKING:
    from compressor.training.train import Trainer


class Phase(IntEnum):
    """When a step has its turn. A recipe's steps stand in this order."""

    STRUCTURE = 0
    """Makes the model physically smaller: channels, neurons, heads or whole layers go, or become two thin ones."""
    WEIGHTS = 1
    """Changes values and how they are held: masks, shared weights, sparse formats. Shapes of results stay."""
    TRAIN = 2
    """Trains what is left: distillation, fine-tuning."""
    QUANTIZE = 3
    """Gives layers another number format, a module at a time."""
    GRAPH = 4
    """The same on the captured graph, where what stands around a convolution can be seen."""


class Training(Protocol):
    """What steps that train need besides the model."""

    def __len__(self) -> int:
        """Batches of one epoch."""

    def batches(self, epoch: int) -> Iterable[tuple[tuple[Tensor, ...], Tensor]]:
        """(inputs, targets) of one epoch, in an order that only the epoch and the seed decide."""

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of what the model returned, a scalar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What steps may use.

    inputs, axes: the model's, as `Model` has them; the examples among them are run to find out how layers are used.
    calibration: batches of the model's inputs, for steps that look at activations. Empty: there are none.
    training: None: steps that train are refused.
    trainer: what runs the trainings; None: this process.
    teacher: what students learn from; None: the model as it was before the first step.
    seed: of every random choice.
    device: on which steps that train or calibrate compute; the model comes back to the CPU.
    target: on which the model will run: "cpu", "cuda" or "cuda:N".
    say: told what begins now, in a few words.
    """

    inputs: tuple[Input, ...]
    axes: tuple[Axis, ...] = ()
    calibration: Sequence[tuple[Tensor, ...]] = ()
    training: Training | None = None
    trainer: "Trainer | None" = None
    teacher: nn.Module | None = None
    seed: int = 0
    device: str = "cpu"
    target: str = "cpu"
    say: Callable[[str], None] = field(default=lambda _: None)

    @property
    def examples(self) -> tuple[Tensor, ...]:
        return tuple(item.example for item in self.inputs)

    @classmethod
    def of(
        cls,
        model: Model,
        *,
        calibration: Sequence[tuple[Tensor, ...]] = (),
        training: Training | None = None,
        trainer: "Trainer | None" = None,
        teacher: nn.Module | None = None,
        seed: int = 0,
        device: str = "cpu",
        target: str = "cpu",
        say: Callable[[str], None] = lambda _: None,
    ) -> "Context":
        return cls(
            inputs=model.inputs,
            axes=model.axes,
            calibration=calibration,
            training=training,
            trainer=trainer,
            teacher=teacher,
            seed=seed,
            device=device,
            target=target,
            say=say,
        )


@dataclass(frozen=True, slots=True)
class Change:
    """What a step did to one layer. `before`, `after`: bytes that its weights take, as they are stored.

    layer: the module's name; "" is the whole model.
    """

    layer: str
    what: str
    before: int
    after: int


class Step(BaseModel):
    """One step. Subclasses set `kind` to a Literal (its name in recipes), `phase`, and mostly `takes`.

    layers: patterns over names of modules ("encoder.*", as in a shell), by which the step finds its layers. A pattern
        that matches a module takes all in it; one that begins with "!" leaves out what the others found.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: ClassVar[Phase]
    takes: ClassVar[tuple[type[nn.Module], ...]] = ()
    """The types of layers that it can change, themselves and no subclasses; empty: it finds its layers itself."""
    devices: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})
    """The kinds of devices on which what it makes can run."""
    unsaid: ClassVar[Mapping[str, Any]] = {}
    """What a manifest means that does not name these fields: they are newer than it."""

    kind: str
    layers: tuple[str, ...] = ("*",)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # fields may be mappings

    def problem(self, model: nn.Module, steps: Sequence["Step"]) -> str | None:
        """Why this step cannot work on this model among these steps; None where it can.

        Asked of every step before any work is done. Subclasses ask this one first.
        """
        del steps
        unknown = patterns_problem(model, self.layers)
        if unknown or not self.takes or self.targets(model):
            return unknown
        where = "the model" if self.layers == ("*",) else f"layers: {', '.join(self.layers)}"
        return f"{where} has no {' or '.join(kind.__name__ for kind in self.takes)}"

    def device_problem(self, target: str) -> str | None:
        """Why what it makes cannot run on `target`, which is of one of its `devices`; None where it can."""
        del target
        return None

    def targets(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers by name that this step is to change, in the model's order; one that is used twice comes once."""
        return {
            name: module
            for name, module in model.named_modules()
            if name and (not self.takes or type(module) in self.takes) and selected(name, self.layers)
        }

    def changes_weights(self, model: nn.Module) -> Mapping[str, str]:
        """The layers whose own weight it changes or puts into another form, which it must find as plain tensors, and
        by which of its keys it finds each.
        """
        return dict.fromkeys(self.targets(model), "layers") if self.takes else {}

    def zeroed(self, model: nn.Module) -> frozenset[str]:
        """The layers in which it sets weights to zero that are to stay zero, whatever comes after it."""
        del model
        return frozenset()

    def teacher_problem(self, teacher: nn.Module) -> str | None:
        """Why this step cannot learn from `teacher`; None where it can, or learns from none."""
        del teacher
        return None

    def settled(self, model: nn.Module) -> "Step":
        """The step with what it found out when it was done to `model`: as a manifest has it, to be done alike again."""
        del model
        return self

    def rehearse_(self, model: nn.Module, context: Context) -> None:
        """Does to `model`, a copy, what later steps count on: names, sizes, zeros and forms.

        Raises:
            ShardlineError: it cannot be done.
        """
        self.apply_(model, context)

    def depends_on_values(self) -> bool:
        """Whether the values of weights decide how much goes from which layer, and not the step's keys alone."""
        return False

    def needs_calibration(self) -> bool:
        """Whether the step looks at activations, so that it cannot work without calibration data."""
        return False

    def needs_training(self) -> bool:
        """Whether the step trains, so that it cannot work without training data."""
        return False

    def needs_teacher(self) -> bool:
        """Whether the step learns from the context's teacher."""
        return False

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        """Does it to `model`, in place, and says for each layer what was done.

        Raises:
            ShardlineError: it cannot be done; the model may be changed in part.
        """
        raise NotImplementedError


class GraphStep(Step):
    """A step that has a second part, on the captured graph, after all other steps. `apply_` may change nothing."""

    phase: ClassVar[Phase] = Phase.GRAPH

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        del model, context
        return []

    def apply_graph(self, model: nn.Module, context: Context) -> tuple[nn.Module, list[Change]]:
        """What takes the model's place, and what was done to which layer."""
        raise NotImplementedError


_NEAR: Final = 0.4


def nearest(name: str, known: Iterable[str]) -> str:
    """'; the nearest is "x"', or what there is where nothing is near."""
    names = list(known)
    found = get_close_matches(name, names, n=1, cutoff=_NEAR)
    if found:
        return f'; the nearest is "{found[0]}"'
    return f"; there is {', '.join(names[:20])}{', …' if len(names) > 20 else ''}" if names else ""


def patterns_problem(model: nn.Module, patterns: Sequence[str]) -> str | None:
    """The pattern that matches no module, and no parameter that the model itself holds, with the nearest name; None
    where each matches something.
    """
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    names += [name for name, _ in model.named_parameters(recurse=False)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern.removeprefix("!")) for name in names):
            return f'layers: "{pattern}" matches nothing{nearest(pattern.removeprefix("!").strip("*."), names)}'
    return None


def selected(name: str, patterns: Sequence[str]) -> bool:
    """Whether the patterns take the module of this name: it, or one that it is in, matches one and is not left out."""
    parts = name.split(".")
    within = [".".join(parts[: length + 1]) for length in range(len(parts))]

    def matches(pattern: str) -> bool:
        return any(fnmatchcase(outer, pattern) for outer in within)

    taken = any(matches(pattern) for pattern in patterns if not pattern.startswith("!"))
    return taken and not any(matches(pattern[1:]) for pattern in patterns if pattern.startswith("!"))


def none_gains(reasons: Mapping[str, str | None], named: Sequence[str], told: str) -> str | None:
    """Why a step has nothing to do: a layer that is `named` is left as it is, or every layer is; None where one gains.

    reasons: of each layer, why it is left as it is. told: how the error begins where it is every layer.
    """
    for name, reason in reasons.items():
        if reason and name in named:
            return f"{name}: {reason}"
    if all(reasons.values()):
        name, reason = next(iter(reasons.items()))
        return f"{told}; {name}: {reason}"
    return None


def replace_layer_(model: nn.Module, layer: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `layer` stands in `model`. One that is used in two places stays one."""
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is layer and parent is not new
    ]
    if not places:
        raise InvalidRequest(f"{type(layer).__name__} is the whole model; put it into an nn.Sequential first")
    new.train(layer.training)
    for parent, name in places:
        setattr(parent, name, new)
    _call_the_layers(model, new)


def _call_the_layers(model: nn.Module, new: nn.Module) -> None:
    """Keeps PyTorch's own transformer layers from their fast path, which takes the weights of the layers in them and
    computes by itself: it would look for the weight that `new` has in another form.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(part is new for part in module.modules()):
            module.activation_relu_or_gelu = 0  # to PyTorch: an activation that the fast path does not know
        if isinstance(module, nn.TransformerEncoder) and any(part is new for part in module.modules()):
            module.use_nested_tensor = False  # which only the fast path can compute with


def stored_bytes(module: nn.Module) -> int:
    """Bytes that a module's parameters and buffers take; a tensor that is there twice counts once."""
    return sum(_held(module).values())


def _held(module: nn.Module) -> dict[tuple[int, int], int]:
    """Each tensor that a module holds, by its place in memory: its bytes."""
    return {
        (tensor.data_ptr(), tensor.numel()): tensor.numel() * tensor.element_size()
        for tensor in (*module.parameters(), *module.buffers())
    }


@dataclass(frozen=True, slots=True)
class Replaced:
    """A layer, and what took its place. what: was done to it, in a few words."""

    name: str
    what: str
    layer: nn.Module
    new: nn.Module


def changes_of(model: nn.Module, replaced: Sequence[Replaced]) -> list[Change]:
    """What was done to each layer, asked when `model` holds what took their places.

    A tensor that several of the layers hold counts for the first one, before and after. One that the model needs still,
    because something that was not replaced holds it too, counts after as well: all changes together are the model's.
    """
    left = _held(model)
    before: dict[tuple[int, int], str] = {}  # which layer each tensor counts for
    after: set[tuple[int, int]] = set()
    changes = []
    for one in replaced:
        old, new = _held(one.layer), _held(one.new)
        stays = {place: size for place, size in old.items() if place in left and place not in new}
        tied = next((before[place] for place in old if place in before), None)
        what = one.what
        if tied is not None:
            what += f"; its weight is that of {tied}, and counted there"
        elif stays:
            what += "; the weight that it had stays, as another layer holds it too"
        changes.append(
            Change(
                one.name,
                what,
                sum(size for place, size in old.items() if place not in before),
                sum(size for place, size in (new | stays).items() if place not in after),
            )
        )
        before = dict.fromkeys(old, one.name) | before
        after |= set(new | stays)
    return changes


def seeded(seed: int, name: str = "") -> torch.Generator:
    """A generator that only the seed and the name decide: for random choices of one layer."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
