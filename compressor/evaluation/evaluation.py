"""How good a model is on labelled records: accuracy, Spearman of embeddings, perplexity, or a function of the user's.

An evaluation gives numbers for each record, and turns them into one figure of which more is better; so every figure has
an interval, and two models' figures a paired one (`compressor.evaluation.bootstrap`).
"""

import importlib
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.evaluation import metrics
from compressor.evaluation.bootstrap import Floats, Interval, Statistic, interval, paired_difference
from compressor.evaluation.paired_counts import paired_shares, records_needed
from compressor.evaluation.records import Records
from compressor.evaluation.text_inputs import TextInputs
from compressor.model import Input, Model
from compressor.step import nearest
from worker.errors import Internal, InvalidRequest, ShardlineError

Run = Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]
"""The model: its inputs, in its order, to its outputs."""

ROWS: Final = 32
"""Rows of a batch while evaluating."""

_FUNCTION: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)


class Evaluation(ABC):
    """names: of the columns of a file without a header. inputs: the columns that make two records the same.

    data: the columns that it needs, in words.
    """

    name: str
    unit: str
    data: ClassVar[str]
    names: ClassVar[tuple[str, ...]] = ()
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def answers(self, run: Run, model: Model, records: Records) -> Floats:
        """What the model says of each record, as numbers: [records] or [records, numbers].

        Raises:
            InvalidRequest: the records lack a column, or do not fit the model.
        """

    @abstractmethod
    def figure(self, answers: Floats, records: Records) -> Statistic:
        """The figure, as it is usually told (accuracy in percent, perplexity as it is).

        Raises:
            InvalidRequest: an answer or a label is not a number.
        """

    def inputs(self, records: Records) -> tuple[str, ...]:
        """The columns that make two records the same one."""
        return tuple(records.columns)

    def interval(self, answers: Floats, records: Records, *, level: float = 0.95, seed: int = 0) -> Interval:
        """The figure and its interval."""
        return interval(self.figure(answers, records), len(records), level=level, seed=seed)

    def drop(self, answers: Floats, base: Floats, records: Records, *, level: float = 0.95, seed: int = 0) -> Interval:
        """How much worse `answers` are than `base`, in the figure's unit; `high` is the most that it may be."""
        ours, theirs = self.figure(answers, records), self.figure(base, records)
        worse, better = (theirs, ours) if self.higher_is_better else (ours, theirs)
        return paired_difference(worse, better, len(records), level=level, seed=seed)

    def proven_drop(
        self, answers: Floats, base: Floats, records: Records, *, level: float = 0.95, seed: int = 0
    ) -> Interval:
        """As `drop`, by the surest interval that there is for the figure: what a budget is proven by."""
        return self.drop(answers, base, records, level=level, seed=seed)

    def records_needed(self, drop: float, *, level: float) -> float:
        """How many records prove such a drop at the best, where no answer changes. 0: nothing tells beforehand."""
        del drop, level
        return 0


class Accuracy(Evaluation):
    """Percent of records whose largest logit is that of their label."""

    name = "accuracy"
    unit = "points"
    data = "one for each input of the model (.npz), or `text`; and `label`, the class's number from 0"
    names = ("text", "label")

    def inputs(self, records: Records) -> tuple[str, ...]:
        return tuple(name for name in records.columns if name != "label")

    def answers(self, run: Run, model: Model, records: Records) -> Floats:
        labels = records.numbers("label")
        found = np.empty(len(records))
        for places, tensors in batches(model, records):
            logits = run(tensors)[0]
            if logits.dim() != 2 or logits.shape[0] != len(places):
                raise InvalidRequest(
                    f"evaluate accuracy: the model's first output is {list(logits.shape)} for {len(places)} records; "
                    "expected [records, classes]"
                )
            wrong = (labels[places] < 0) | (labels[places] >= logits.shape[1]) | (labels[places] % 1 != 0)
            if wrong.any():
                raise InvalidRequest(
                    f"{records.source}: column 'label': {labels[places][wrong][0]:g}; the model has {logits.shape[1]} "
                    "classes, numbered from 0"
                )
            right = logits.argmax(1).numpy() == labels[places]
            found[places] = np.where(logits.isfinite().all(1).numpy(), right, np.nan)
        return found

    def figure(self, answers: Floats, records: Records) -> Statistic:
        mean = metrics.mean(answers)
        return lambda counts: 100 * mean(counts)

    def proven_drop(
        self, answers: Floats, base: Floats, records: Records, *, level: float = 0.95, seed: int = 0
    ) -> Interval:
        """Exact: see `compressor.evaluation.paired_counts`."""
        del seed
        found = _counted(self, answers, base, records, level)
        return replace(found, value=100 * found.value, low=100 * found.low, high=100 * found.high)

    def records_needed(self, drop: float, *, level: float) -> float:
        return records_needed(drop / 100, level=level)


class Spearman(Evaluation):
    """Spearman's correlation x100 of the cosine of two sentences' embeddings with their labelled similarity."""

    name = "spearman"
    unit = "points"
    data = "`sentence1`, `sentence2`, `score`, as STS-B has them; for a model that is served as text"
    names = ("sentence1", "sentence2", "score")

    def inputs(self, records: Records) -> tuple[str, ...]:
        del records
        return ("sentence1", "sentence2")

    def answers(self, run: Run, model: Model, records: Records) -> Floats:
        records.numbers("score")
        texts = [*records.texts("sentence1"), *records.texts("sentence2")]
        encoder = TextInputs(model)
        found: list[torch.Tensor] = [torch.empty(0)] * len(texts)
        for places, tensors in encoder.batches(texts, ROWS):
            vectors = run(tensors)[0]
            if vectors.dim() != 2 or vectors.shape[0] != len(places):
                raise InvalidRequest(
                    f"evaluate spearman: the model's first output is {list(vectors.shape)} for {len(places)} texts; "
                    "expected one vector each: [texts, numbers]"
                )
            for place, vector in zip(places, vectors.double(), strict=True):
                found[place] = vector
        left, right = torch.stack(found[: len(records)]), torch.stack(found[len(records) :])
        return torch.nn.functional.cosine_similarity(left, right).numpy()

    def figure(self, answers: Floats, records: Records) -> Statistic:
        rank = metrics.spearman(answers, records.numbers("score"))
        return lambda counts: 100 * rank(counts)


class Perplexity(Evaluation):
    """exp of the mean loss of each next token. The model's first output is logits [records, length, vocabulary]."""

    name = "perplexity"
    unit = "perplexity"
    data = (
        "one for each input of the model (.npz), the first of them token ids [records, length]; where another has "
        '"mask" in its name, a token counts where that is not 0'
    )
    higher_is_better = False

    def answers(self, run: Run, model: Model, records: Records) -> Floats:
        found = np.empty((len(records), 2))
        mask = next((place for place, item in enumerate(model.inputs) if "mask" in item.name), None)
        for places, tensors in batches(model, records):
            ids = tensors[0]
            logits = run(tensors)[0]
            if logits.dim() != 3 or logits.shape[:2] != ids.shape:
                raise InvalidRequest(
                    f"evaluate perplexity: the model's first output is {list(logits.shape)} for token ids "
                    f"{list(ids.shape)}; expected [records, length, vocabulary]"
                )
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].double().transpose(1, 2), ids[:, 1:].long(), reduction="none"
            )
            counted = torch.ones_like(losses) if mask is None else (tensors[mask][:, 1:] != 0).double()
            found[places, 0] = (losses * counted).sum(1).numpy()
            found[places, 1] = counted.sum(1).numpy()
        return found

    def figure(self, answers: Floats, records: Records) -> Statistic:
        return metrics.perplexity(answers[:, 0], answers[:, 1])


class Function(Evaluation):
    """A function of the user's: function(run, columns) → one number a record, of which more is better.

    `run(*tensors)` gives the model's outputs; `columns` the data's columns by name. The figure is the mean.
    """

    unit = "units"
    data = "yours: the function gets all of them"

    def __init__(self, name: str) -> None:
        self.name = name
        module, _, function = name.partition(":")
        try:
            self._function: Callable[..., Any] = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise InvalidRequest(f"evaluate {name!r}: {error}") from error

    def answers(self, run: Run, model: Model, records: Records) -> Floats:
        del model
        failed: list[Exception] = []

        def asked(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            try:
                return run(tensors)
            except Exception as error:
                failed.append(error)
                raise

        try:
            found = np.asarray(self._function(asked, dict(records.columns)), dtype=np.float64)
        except (ShardlineError, OSError):
            raise
        except Exception as error:
            if error in failed:
                told = f"{type(error).__name__}: {error}"
                raise Internal(f"evaluate {self.name!r}: the model failed on what it was given: {told}") from error
            raise InvalidRequest(f"evaluate {self.name!r} failed: {type(error).__name__}: {error}") from error
        if found.shape != (len(records),):
            raise InvalidRequest(
                f"evaluate {self.name!r} returned an array of shape {list(found.shape)}; expected one number for each "
                f"of the {len(records)} records"
            )
        return found

    def figure(self, answers: Floats, records: Records) -> Statistic:
        del records
        return metrics.mean(answers)

    def proven_drop(
        self, answers: Floats, base: Floats, records: Records, *, level: float = 0.95, seed: int = 0
    ) -> Interval:
        """Exact where every number is 0 or 1, such as for an answer that is right or not."""
        if np.isin(answers, (0, 1)).all() and np.isin(base, (0, 1)).all():
            return _counted(self, answers, base, records, level)
        return self.drop(answers, base, records, level=level, seed=seed)


def _counted(evaluation: Evaluation, answers: Floats, base: Floats, records: Records, level: float) -> Interval:
    """The drop of shares of records, from answers that are 0 or 1."""
    for each in (answers, base):
        evaluation.figure(each, records)  # refuses what is not a number
    worse, better = np.count_nonzero(answers < base), np.count_nonzero(answers > base)
    return paired_shares(int(worse), int(better), len(records), level=level)


BUILT_IN: Final[dict[str, type[Evaluation]]] = {kind.name: kind for kind in (Accuracy, Spearman, Perplexity)}


def find_evaluation(name: str) -> Evaluation:
    """The evaluation called so: a built-in, or "module:function", which is imported.

    Raises:
        InvalidRequest: there is none, with the nearest name.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if _FUNCTION.fullmatch(name) is None:
        raise InvalidRequest(
            f"evaluate {name!r}: expected {', '.join(BUILT_IN)}, or module:function{nearest(name, BUILT_IN)}"
        )
    return Function(name)


def batches(model: Model, records: Records) -> Iterator[tuple[NDArray[np.int64], tuple[torch.Tensor, ...]]]:
    """(places of the records, the model's inputs), a batch at a time.

    Raises:
        InvalidRequest: the records have neither a column for each input nor a text for a model that takes text.
    """
    missing = [item.name for item in model.inputs if item.name not in records.columns]
    if missing and "text" in records.columns and model.handler is not None:
        encoder = TextInputs(model)
        yield from encoder.batches(records.texts("text"), ROWS)
        return
    if missing:
        raise InvalidRequest(
            f"{records.source}: no column for the model's input {missing[0]!r}; there is {', '.join(records.columns)}"
        )
    for first in range(0, len(records), ROWS):
        places = np.arange(first, min(first + ROWS, len(records)))
        yield places, tuple(_tensor(records, item, places) for item in model.inputs)


def _tensor(records: Records, item: Input, places: NDArray[np.int64]) -> torch.Tensor:
    column = records.column(item.name)[places]
    if column.dtype.kind not in "biuf":
        raise InvalidRequest(
            f"{records.source}: column {item.name!r} holds no numbers; the model's input is {item.example.dtype}"
        )
    tensor = torch.from_numpy(np.ascontiguousarray(column)).to(item.example.dtype)
    expected = [axis or size for axis, size in zip(item.axes, item.example.shape, strict=True)]
    fits = tensor.dim() == len(expected) and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(expected[1:], tensor.shape[1:], strict=True)
    )
    if not fits:
        raise InvalidRequest(
            f"{records.source}: column {item.name!r} has {list(column.shape[1:])} a record; the model's input takes "
            f"{expected[1:]}"
        )
    return tensor


def make_importable(folder: str = "") -> None:
    """Lets sources and functions stand in the folder where the command is typed."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
