"""The models behind `benchmarks.compression.sst2`: MiniLM with a head, and a student of half its layers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from compressor.compress import compress_
from compressor.evaluation.records import Records, read_records
from compressor.evaluation.text_inputs import TextInputs
from compressor.model import Model
from compressor.profiling.measure import threads
from compressor.pruning.prune_layers import PruneLayers
from compressor.sources.sources import read_source
from compressor.step import Context, Step, seeded
from compressor.training.checkpoint import FileCheckpoint
from compressor.training.train import train_
from compressor.training.training_data import classes
from compressor.training.training_steps import Distill, FineTune

WORK: Final = Path("build/benchmarks/sst2")
DATA: Final = Path(__file__).parents[3] / "shared" / "data" / "sst2"
SEED: Final = 0
ROWS: Final = 32
POOL: Final = 16
"""Batches whose sentences are sorted by length together, so that little is padded."""

LAYERS: Final = "encoder.encoder.encoder.layer"

TEACHER: Final[tuple[Step, ...]] = (FineTune(epochs=2, rate=1e-4, optimiser="adamw", decay=0.01, bfloat16=True),)
STUDENT: Final[tuple[Step, ...]] = (
    PruneLayers(layers=tuple(f"{LAYERS}.{place}" for place in (1, 3, 5)), count=3),
    Distill(
        epochs=3,
        rate=2e-4,
        optimiser="adamw",
        decay=0.01,
        bfloat16=True,
        temperature=2.0,
        hidden={f"{LAYERS}.{mine}": f"{LAYERS}.{theirs}" for mine, theirs in ((0, 1), (1, 3), (2, 5))},
    ),
)
"""Every second layer goes, and each that stays learns to give what the one after it gave (as in DistilBERT and
TinyBERT)."""


class Classifier(nn.Module):
    """input_ids, attention_mask INT64 [batch, sequence] → logits FP32 [batch, 2]."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(input_ids, attention_mask))
        return logits


def fresh(folder: Path) -> Model:
    """MiniLM's encoder, its embedding not of length one, and a head that knows nothing."""
    model = read_source(folder)
    encoder: Any = model.module
    encoder.normalize = False
    encoder.encoder.pooler = None  # its result is not used
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        head = Classifier(encoder, encoder.encoder.config.hidden_size)
    return replace(model, module=head.eval(), outputs=("logits",), identity="")


def records(name: str) -> Records:
    """train or dev: columns text and label. Raises InvalidRequest: it is not beside the checkout."""
    return read_records(DATA / f"{name}.tsv", ("text", "label"))


@dataclass(frozen=True, slots=True)
class Sentences:
    """Labelled sentences as `compressor.step.Training` wants them: shuffled, then batches of about one length."""

    ids: tuple[Tensor, ...]
    labels: Tensor
    pad: int

    def __len__(self) -> int:
        return len(self.ids) // ROWS

    def batches(self, epoch: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        generator = seeded(SEED, f"epoch {epoch}")
        order = torch.randperm(len(self.ids), generator=generator)[: len(self) * ROWS].tolist()
        pools = [order[place : place + POOL * ROWS] for place in range(0, len(order), POOL * ROWS)]
        ordered = [place for pool in pools for place in sorted(pool, key=lambda one: len(self.ids[one]))]
        for batch in torch.randperm(len(self), generator=generator).tolist():
            chosen = ordered[batch * ROWS : (batch + 1) * ROWS]
            ids = nn.utils.rnn.pad_sequence([self.ids[one] for one in chosen], True, self.pad)
            lengths = torch.tensor([len(self.ids[one]) for one in chosen])
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(torch.int64)
            yield (ids, mask), self.labels[chosen]

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        return classes(outputs, targets)


def sentences(model: Model) -> Sentences:
    found = records("train")
    encoder = TextInputs(model)
    ids: list[Tensor] = [torch.empty(0)] * len(found)
    for places, (padded, mask) in encoder.batches([str(text) for text in found.column("text")], ROWS):
        for place, row, length in zip(places, padded, mask.sum(1).tolist(), strict=True):
            ids[place] = row[:length]
    pad = next(int(item.pad or 0) for item in model.inputs if item.name == "input_ids")
    return Sentences(tuple(ids), torch.from_numpy(found.numbers("label")).to(torch.int64), pad)


def trained(name: str, model: Model, steps: tuple[Step, ...], say: Callable[[str], None]) -> Model:
    """`model` after the steps, in place; what was trained before is read, or gone on with."""
    data = sentences(model)
    trainer = partial(train_, checkpoint=FileCheckpoint(WORK / f"{name}.pt"), every=50)
    context = Context.of(model, training=data, trainer=trainer, seed=SEED, say=lambda text: say(f"{name}: {text}"))
    with threads(1):
        compress_(model.module, *steps, context=context)
    return model


def teacher(folder: Path, say: Callable[[str], None]) -> Model:
    return trained("teacher", fresh(folder), TEACHER, say)


def student(folder: Path, say: Callable[[str], None]) -> Model:
    return trained("student", teacher(folder, say), STUDENT, say)
