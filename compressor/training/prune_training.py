"""Steps that prune while they train: little by little by a schedule, or by a penalty that drives weights to zero."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from compressor.pruning.masks import Score
from compressor.pruning.prune_units import PruneChannels, PruneNeurons
from compressor.pruning.prune_weights import PruneWeights, Side
from compressor.step import Context, Step
from compressor.training.prune_hooks import GradualMasks, KeepZeros, UnitPenalty, WeightPenalty
from compressor.training.train import Fraction, Hook, Positive, Supervised
from compressor.training.training_steps import TrainingStep
from worker.errors import InvalidRequest


class _Supervised(TrainingStep):
    def objective(self, model: nn.Module, context: Context) -> nn.Module:
        if context.training is None:
            raise InvalidRequest(f'"{self.kind}" trains and there is no training data; give some')
        return Supervised(model, context.training.loss)


class PruneGradually(_Supervised):
    """Fine-tunes, and prunes weights meanwhile: fast first, then slowly, so that what is left can make up for it.

    It costs less accuracy than pruning at once.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017 (the cubic schedule).
    Saves: nothing by itself, neither storage nor resident memory nor time. With `sparse`, storage.
    Device: any.

    sparsity, score, block, among: as of `prune_weights`. prune: the layers that are pruned, by patterns.
    begin, end: the parts of the training at which pruning begins and is done. every: steps between two masks.
    """

    kind: Literal["prune_gradually"] = "prune_gradually"
    sparsity: float = Field(gt=0, lt=1)
    score: Score = "l1"
    block: tuple[Side, Side] = (1, 1)
    among: Literal["all", "layer", "row"] = "layer"
    prune: tuple[str, ...] = ("*",)
    begin: Fraction = 0.0
    end: Fraction = 0.7
    every: Annotated[int, Field(ge=1, le=1_000_000)] = 10

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> Self:
        if self.begin >= self.end:
            raise ValueError(f"begin {self.begin}: expected less than end {self.end}")
        return self

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        return super().problem(model, steps) or self._masks().problem(model, (self._masks(),))

    def changes_weights(self, model: nn.Module) -> Mapping[str, str]:
        return dict.fromkeys(self._masks().targets(model), "prune")

    def zeroed(self, model: nn.Module) -> frozenset[str]:
        return self._masks().zeroed(model)

    def depends_on_values(self) -> bool:
        return self._masks().depends_on_values()

    def rehearse_(self, model: nn.Module, context: Context) -> None:
        super().rehearse_(model, context)
        self._masks().apply_(model, context)

    def hooks(self, model: nn.Module, context: Context) -> Sequence[Hook]:
        masks = self._masks()
        gradual = GradualMasks(
            masks, masks.fitting(model), begin=self.begin, end=self.end, every=self.every, seed=context.seed
        )
        return (*super().hooks(model, context), gradual)

    def _masks(self) -> PruneWeights:
        return PruneWeights(
            layers=self.prune, sparsity=self.sparsity, score=self.score, block=self.block, among=self.among
        )


class TrainSparse(_Supervised):
    """Fine-tunes with a penalty that drives weights, or whole channels or neurons, towards zero.

    Afterwards `prune_weights`, `prune_channels` or `prune_neurons` with `below` removes what came near to zero, and
    little is lost.

    Source: Tibshirani, 1996 (l1); Yuan and Lin, 2006, and Wen et al., "Learning Structured Sparsity", 2016 (groups).
    Saves: nothing by itself, neither storage nor resident memory nor time: what removes weights or units afterwards
    does.
    Device: any.

    of: what goes to zero: single "weights", or "channels" or "neurons" with all their weights, scales of norms and
        inputs of later layers.
    penalty: "l1" or "l2" of weights; of channels and neurons "l2": the norm of each, not squared.
    strength: of the penalty in the loss.
    sparse: the layers that it is put on, by patterns; of channels and neurons the ones that make them.
    """

    kind: Literal["train_sparse"] = "train_sparse"
    of: Literal["weights", "channels", "neurons"] = "weights"
    penalty: Literal["l1", "l2"] = "l1"
    strength: Positive = 1e-4
    sparse: tuple[str, ...] = ("*",)

    @model_validator(mode="after")
    def _norm_of_groups(self) -> Self:
        if self.of != "weights" and self.penalty != "l2":
            raise ValueError(f'{self.of} as wholes are driven to zero by the penalty "l2", the norm of each')
        return self

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        return super().problem(model, steps) or self._removal().problem(model, (self._removal(),))

    def changes_weights(self, model: nn.Module) -> Mapping[str, str]:
        return dict.fromkeys(self._removal().targets(model), "sparse")

    def hooks(self, model: nn.Module, context: Context) -> Sequence[Hook]:
        removal = self._removal()
        if isinstance(removal, PruneWeights):
            layers = list(removal.targets(model).values())
            return (KeepZeros(model), WeightPenalty(layers, self.penalty, self.strength))
        return (KeepZeros(model), UnitPenalty(model, removal.groups(model, context), self.strength))

    def _removal(self) -> PruneWeights | PruneChannels | PruneNeurons:
        """The step that finds what the penalty is put on."""
        match self.of:
            case "weights":
                return PruneWeights(layers=self.sparse, below=0.1)
            case "channels":
                return PruneChannels(layers=self.sparse, below=0.1)
        return PruneNeurons(layers=self.sparse, below=0.1)


PRUNING_TRAINING: Final[tuple[type[Step], ...]] = (PruneGradually, TrainSparse)
