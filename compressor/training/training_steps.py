"""Steps that train what other steps left: fine-tuning, and distillation from the model as it was before."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from compressor.step import Change, Context, Phase, Step, nearest, selected, stored_bytes
from compressor.training.distill import Distillation, DistillationNetwork, Match, NetworkDistillation
from compressor.training.prune_hooks import KeepZeros
from compressor.training.train import Course, Fraction, Hook, NotNegative, Positive, Supervised, train_
from compressor.training.training_data import first
from worker.errors import InvalidRequest


class TrainingStep(Step, Course):
    """A step that trains. It saves nothing itself: it wins back accuracy that other steps cost, on any device.

    layers: what is trained, parameters that the model itself holds included; all else is frozen, the running statistics
        of its norms too.
    """

    phase: ClassVar[Phase] = Phase.TRAIN

    def needs_training(self) -> bool:
        return True

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        if context.training is None:
            raise InvalidRequest(f'"{self.kind}" trains and there is no training data; give some')
        before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        trained = {id(parameter) for parameter in self.trained(model)}
        try:
            for parameter, _ in before:
                parameter.requires_grad_(id(parameter) in trained and parameter.is_floating_point())
            found = (context.trainer or train_)(
                self.objective(model, context),
                context.training,
                self,
                hooks=self.hooks(model, context),
                seed=context.seed,
                device=context.device,
                say=context.say,
            )
        finally:
            for parameter, required in before:
                parameter.requires_grad_(required)
        size = stored_bytes(model)
        return [Change("", f"{found.steps} steps, loss {found.losses[0]:.4g} → {found.losses[-1]:.4g}", size, size)]

    def rehearse_(self, model: nn.Module, context: Context) -> None:
        """Sets the training up without doing it: what cannot be compared with the teacher is found out then."""
        self.objective(model, context)
        self.hooks(model, context)

    def trained(self, model: nn.Module) -> list[nn.Parameter]:
        """All in the targets, and what the patterns take of what the model itself holds, as a class token."""
        own = [parameter for name, parameter in model.named_parameters(recurse=False) if selected(name, self.layers)]
        return [*own, *(parameter for layer in self.targets(model).values() for parameter in layer.parameters())]

    def objective(self, model: nn.Module, context: Context) -> nn.Module:
        """What is trained; called with (inputs, targets) it returns the loss."""
        raise NotImplementedError

    def hooks(self, model: nn.Module, context: Context) -> Sequence[Hook]:
        """What takes part in the training: weights that were pruned stay zero."""
        del context
        return (KeepZeros(model),)

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        return super().problem(model, steps) or (
            None
            if any(parameter.numel() for parameter in self.trained(model))
            else f"{', '.join(self.layers)}: nothing there can be trained"
        )


class FineTune(TrainingStep):
    """Trains on the targets alone: wins back accuracy that other steps cost. Weights that are zero stay so.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015 (training what
    pruning left).
    Saves: nothing by itself, neither storage nor resident memory nor time.
    Device: any; the training itself on the context's.
    """

    kind: Literal["fine_tune"] = "fine_tune"

    def objective(self, model: nn.Module, context: Context) -> nn.Module:
        if context.training is None:
            raise InvalidRequest(f'"{self.kind}" trains and there is no training data; give some')
        return Supervised(model, context.training.loss)


class Distill(TrainingStep):
    """Trains the model to give what its teacher gives: see `compressor.training.distill.Distillation` for the keys.

    The teacher is the context's, or the model as it was before the first step; so a student is made by what stands
    before this step (dropped layers, fewer channels, thin factors), or by hand with a teacher in the context.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015; `hidden`: Romero et al.,
    "FitNets", 2015, and Jiao et al., "TinyBERT", 2020.
    Saves: nothing by itself, neither storage nor resident memory nor time: it wins back accuracy of what is smaller.
    Device: any; the training itself on the context's.

    share: of the teacher in the loss; 1: targets are not looked at.
    """

    kind: Literal["distill"] = "distill"
    temperature: Positive = 4.0
    share: Fraction = 0.9
    match: Match = "classes"
    hidden: Mapping[str, str] = Field(default_factory=dict)
    hidden_share: NotNegative = 1.0

    def needs_teacher(self) -> bool:
        return True

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        told = super().problem(model, steps)
        if told is None and self.hidden and not self.hidden_share:
            told = "hidden: hidden_share is 0, so that nothing is learned from these layers"
        if told is None and steps and steps[0] is self:  # else names may come to be by then; it is asked again
            told = _missing(model, tuple(self.hidden), "the model")
        return told

    def teacher_problem(self, teacher: nn.Module) -> str | None:
        return _missing(teacher, tuple(self.hidden.values()), "the teacher")

    def objective(self, model: nn.Module, context: Context) -> nn.Module:
        if context.training is None or context.teacher is None:
            raise InvalidRequest(f'"{self.kind}" needs training data and a teacher')
        return Distillation(
            model,
            context.teacher,
            context.examples,
            loss=context.training.loss if self.share < 1 else None,
            temperature=self.temperature,
            share=self.share,
            match=self.match,
            hidden=self.hidden,
            hidden_share=self.hidden_share,
            seed=context.seed,
        )


class DistillNetwork(TrainingStep):
    """Trains the model inside a distillation network, where it also takes its teacher's output, and keeps the model.

    See `compressor.training.distill.DistillationNetwork`. The network itself, with the teacher's output as one more
    input, is made and trained by that module's classes: a step cannot give a model another input.

    Source: Vapnik and Vashist, "Learning using privileged information", 2009; Lopez-Paz et al., 2016.
    Saves: nothing by itself, neither storage nor resident memory nor time: it wins back accuracy of what is smaller.
    Device: any; the training itself on the context's.

    absent: of the student without the teacher's output in the loss. width: of the network's hidden layer.
    """

    kind: Literal["distill_network"] = "distill_network"
    temperature: Positive = 4.0
    share: Fraction = 0.9
    match: Match = "classes"
    absent: Annotated[float, Field(gt=0, le=1)] = 0.5
    width: Annotated[int, Field(ge=1, le=65_536)] = 32

    def needs_teacher(self) -> bool:
        return True

    def objective(self, model: nn.Module, context: Context) -> nn.Module:
        if context.training is None or context.teacher is None:
            raise InvalidRequest(f'"{self.kind}" needs training data and a teacher')
        outputs, theirs = (first(module.eval()(*context.examples)).shape[-1] for module in (model, context.teacher))
        network = DistillationNetwork(model, outputs, theirs, width=self.width, seed=context.seed)
        return NetworkDistillation(
            network,
            context.teacher,
            loss=context.training.loss,
            temperature=self.temperature,
            share=self.share,
            match=self.match,
            absent=self.absent,
        )


def _missing(module: nn.Module, names: Sequence[str], whose: str) -> str | None:
    """Which of `hidden`'s layers `module` lacks, with the nearest that there is."""
    known = [name for name, _ in module.named_modules() if name]
    return next(
        (f'hidden: {whose} has no layer "{name}"{nearest(name, known)}' for name in names if name not in known), None
    )


TRAINING: tuple[type[Step], ...] = (FineTune, Distill, DistillNetwork)
