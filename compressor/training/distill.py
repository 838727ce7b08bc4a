"""Distillation: a student learns from a teacher's outputs and from what is inside it.

Each objective takes a batch and returns its loss, as `compressor.training.train` wants it. The teacher is frozen and
computes in evaluation mode; it is no part of an objective's state, so checkpoints hold the student alone.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compressor.capture import without_fast_path
from compressor.training.peers import BatchMean
from compressor.training.train import put_
from compressor.training.training_data import first
from worker.errors import InvalidRequest

Loss = Callable[[Any, Tensor], Tensor]

Match = Literal["classes", "values"]


class Teacher:
    """A frozen model. What it gives costs no gradient; it goes to the device of what it is asked.

    layers: names of the modules whose results `asked` returns too.
    """

    def __init__(self, module: nn.Module, layers: tuple[str, ...] = ()) -> None:
        self.module = module
        self._layers = layers
        self._device: torch.device | None = None

    def asked(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Its first output, and what its layers returned."""
        if self._device != inputs[0].device:
            self._device = inputs[0].device
            put_(self.module, self._device)
        self.module.eval()
        with torch.no_grad(), without_fast_path(), recorded(self.module, self._layers) as found:
            output = first(self.module(*inputs))
        return output.float(), dict(found)


@contextmanager
def recorded(module: nn.Module, layers: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Fills the mapping it gives with what these layers of `module` return while it runs."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, result: Any) -> None:
            found[name] = first(result)

        return hook

    places = layers_of(module, layers)
    handles = [place.register_forward_hook(keep(name)) for name, place in places.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def layers_of(module: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """The modules of these names.

    Raises:
        InvalidRequest: one is not there.
    """
    known = dict(module.named_modules())
    missing = [name for name in names if name not in known]
    if missing:
        raise InvalidRequest(f"{type(module).__name__} has no layer {', '.join(missing)}")
    return {name: known[name] for name in names}


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The divergence of the student's classes from the teacher's, both softened. [rows, classes] each → a scalar.

    KL(softmax(teacher / T) || softmax(student / T)) * T^2, so that its gradient keeps its size whatever T is (Hinton,
    Vinyals and Dean, 2015, section 2).
    """
    if student.shape != teacher.shape:
        raise InvalidRequest(f"the student returns {tuple(student.shape)} and the teacher {tuple(teacher.shape)}")
    found = nn.functional.log_softmax(student.float() / temperature, -1)
    wanted = nn.functional.log_softmax(teacher.float() / temperature, -1)
    per_row = nn.functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
    return per_row.mean() * temperature**2


def value_loss(student: Tensor, teacher: Tensor, mean: Callable[[Tensor], Tensor] = torch.mean) -> Tensor:
    """The mean square of what is between them, in units of the teacher's own mean square: 1 is as bad as zeros.

    mean: of the teacher's squares, over the whole batch where several processes share one.
    """
    if student.shape != teacher.shape:
        raise InvalidRequest(f"the student returns {tuple(student.shape)} and the teacher {tuple(teacher.shape)}")
    size = mean(teacher.float().square()).clamp(min=1e-12)
    return nn.functional.mse_loss(student.float(), teacher.float()) / size


class Distillation(nn.Module):
    """Learns from the targets and from a teacher: (inputs, targets) → loss.

    loss: of outputs and targets; None: there are no targets that mean anything.
    share: how much of the loss the teacher's output has; the targets have the rest.
    match: "classes" compares softened classes (`soft_loss`), "values" compares numbers (`value_loss`).
    hidden: names of layers, student's to teacher's, whose results are compared too, by `value_loss`. Where they have
        another width, a linear layer that is trained along takes the student's to the teacher's (Romero et al., 2015,
        FitNets; Jiao et al., 2020, TinyBERT); it is thrown away afterwards. Results of images [rows, channels, height,
        width] are compared channel for channel, others [rows, …, width] along their last dimension.
    hidden_share: what is added for each pair of layers, times the mean of their losses.

    Raises:
        InvalidRequest: a layer is not there, or results cannot be compared.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        example: tuple[Tensor, ...],
        *,
        loss: Loss | None,
        temperature: float = 4.0,
        share: float = 0.9,
        match: Match = "classes",
        hidden: Mapping[str, str] | None = None,
        hidden_share: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.student = student
        self._pairs = dict(hidden or {})
        self._teacher = Teacher(teacher, tuple(self._pairs.values()))
        self._loss, self._temperature, self._share, self._match = loss, temperature, share, match
        self._hidden_share = hidden_share
        self._mean = BatchMean()
        self.projections = nn.ModuleList()
        self._fit(example, seed)

    def forward(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        wanted, inside = self._teacher.asked(inputs)
        with recorded(self.student, tuple(self._pairs)) as found:
            outputs = self.student(*inputs)
        total = self._compare(first(outputs), wanted) * (self._share if self._loss else 1.0)
        if self._loss and self._share < 1:
            total = total + (1 - self._share) * self._loss(outputs, targets)
        if self._pairs:
            losses = [
                value_loss(projection(last(found[mine]).float()), last(inside[theirs]), self._mean)
                for projection, (mine, theirs) in zip(self.projections, self._pairs.items(), strict=True)
            ]
            total = total + self._hidden_share * torch.stack(losses).mean()
        return total

    def _compare(self, found: Tensor, wanted: Tensor) -> Tensor:
        if self._match == "classes":
            return soft_loss(found, wanted, self._temperature)
        return value_loss(found, wanted, self._mean)

    def _fit(self, example: tuple[Tensor, ...], seed: int) -> None:
        """Makes the projections, and finds out whether everything can be compared."""
        training = self.student.training
        self.student.eval()
        wanted, inside = self._teacher.asked(example)
        with torch.no_grad(), without_fast_path(), recorded(self.student, tuple(self._pairs)) as found:
            self._compare(first(self.student(*example)), wanted)
        self.student.train(training)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for mine, theirs in self._pairs.items():
                here, there = last(found[mine]), last(inside[theirs])
                if here.shape[:-1] != there.shape[:-1]:
                    raise InvalidRequest(
                        f"{mine} returns {tuple(here.shape)} and the teacher's {theirs} {tuple(there.shape)} "
                        "(channels last); only the width may differ"
                    )
                same = here.shape[-1] == there.shape[-1]
                projection = nn.Identity() if same else nn.Linear(here.shape[-1], there.shape[-1], bias=False)
                self.projections.append(projection)


def last(result: Tensor) -> Tensor:
    """A layer's result with what is compared in its last dimension: images come as [rows, channels, height, width]."""
    return result.permute(0, 2, 3, 1) if result.dim() == 4 else result


class DistillationNetwork(nn.Module):
    """A student that also takes the teacher's output as input: (*inputs, teacher's output) → output.

    The output is the student's own plus a correction, which a small network makes of both outputs and which begins at
    zero. Where the teacher's output is missing (None), the correction is too, and what is left is the student. It is
    taught both ways, so that both work: learning using privileged information (Vapnik and Vashist, 2009; Lopez-Paz et
    al., 2016), of which the student alone keeps what the softened classes taught it.

    student: returns [rows, outputs]. teacher_outputs: width of the teacher's.
    """

    def __init__(self, student: nn.Module, outputs: int, teacher_outputs: int, *, width: int = 32, seed: int = 0):
        super().__init__()
        self.student = student
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.both = nn.Linear(outputs + teacher_outputs, width)
            self.correction = nn.Linear(width, outputs)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, *inputs: Tensor | None) -> Tensor:
        *own, told = inputs
        output = first(self.student(*own))
        return output if told is None else output + self.corrected(output, told)

    def corrected(self, output: Tensor, told: Tensor) -> Tensor:
        """What the teacher's output adds to the student's: [rows, outputs]."""
        inner = torch.relu(self.both(torch.cat([output.float(), told.float()], -1)))
        correction: Tensor = self.correction(inner)
        return correction


class NetworkDistillation(nn.Module):
    """Teaches a `DistillationNetwork`: (inputs, targets) → loss.

    absent: how much of the loss is that of the student alone, learning softened classes and targets as in
        `Distillation`; the rest is that of the network which sees the teacher's output, learning the targets.
    """

    def __init__(
        self,
        network: DistillationNetwork,
        teacher: nn.Module,
        *,
        loss: Loss,
        temperature: float = 4.0,
        share: float = 0.9,
        match: Match = "classes",
        absent: float = 0.5,
    ) -> None:
        super().__init__()
        self.network = network
        self._teacher = Teacher(teacher)
        self._loss, self._temperature, self._share, self._match = loss, temperature, share, match
        self._absent = absent
        self._mean = BatchMean()

    def forward(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        told, _ = self._teacher.asked(inputs)
        alone = first(self.network.student(*inputs))
        together = alone + self.network.corrected(alone, told)
        classes = self._match == "classes"
        soft = soft_loss(alone, told, self._temperature) if classes else value_loss(alone, told, self._mean)
        without = self._share * soft + (1 - self._share) * self._loss(alone, targets)
        return self._absent * without + (1 - self._absent) * self._loss(together, targets)
