"""The trainings behind `benchmarks.compression.resnet`: recipes, kept under build/ and resumed where they stopped.

    python -m benchmarks.compression.resnet_students [--train build/cifar10/package] [pruned student_alone …]

All run on one thread in bfloat16, in about an hour of a core with its instructions.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.compression import cifar
from compressor.compress import compress_
from compressor.model import Input, Model
from compressor.profiling.measure import threads
from compressor.pruning.prune_layers import PruneLayers
from compressor.pruning.prune_units import PruneChannels
from compressor.step import Context, Step
from compressor.training.checkpoint import FileCheckpoint
from compressor.training.train import train_
from compressor.training.training_data import Rows
from compressor.training.training_steps import Distill, FineTune
from tests.models import CIFAR, CifarResNet
from worker.nouns import Axis

WORK: Final = Path("build/benchmarks/resnet")

GONE: Final = ("layer1.4", "layer1.5", "layer1.8")
"""Blocks of ResNet-56 that go whole: those of the widest images whose loss moves the classes of training images least
(Kullback-Leibler divergence from the whole network's)."""

NARROW: Final = ("layer1.*.conv1", "layer2.*.conv1")
NARROW_LAST: Final = ("layer3.*.conv1",)
"""Blocks that keep their place and lose channels between their two convolutions."""

GROUPS: Final = ("layer1", "layer2", "layer3")

STUDENT: Final = {"epochs": 5, "rate": 0.1, "decay": 5e-4, "warm_up": 0.15, "bfloat16": True}
"""Of ResNet-20, with the teacher and without: a fortieth of what its authors trained it for."""

RECIPES: Final[dict[str, tuple[Step, ...]]] = {
    "pruned": (
        PruneLayers(layers=GONE, count=len(GONE)),
        PruneChannels(layers=NARROW, share=0.5),
        PruneChannels(layers=NARROW_LAST, share=0.375),
        Distill(epochs=7, rate=0.03, decay=5e-4, bfloat16=True, hidden={name: name for name in GROUPS}),
    ),
    "student_alone": (FineTune.model_validate(STUDENT),),
    "student_with_teacher": (Distill.model_validate(STUDENT),),
}

SEED: Final = 0


def resnet56() -> Model:
    net = CifarResNet(9)
    saved = torch.load(CIFAR / "resnet56-4bfd9763.th", map_location="cpu", weights_only=True)["state_dict"]
    net.load_state_dict({name.removeprefix("module."): weight for name, weight in saved.items()})
    return model_of(net)


def fresh_resnet20() -> Model:
    """As He et al. begin: normal numbers by the size of what a layer takes."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        net = CifarResNet(3)
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
    return model_of(net)


def model_of(net: nn.Module) -> Model:
    """image FP32 [batch, 3, 32, 32] → logits FP32 [batch, 10]."""
    example = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(SEED))
    inputs = (Input("image", example, ("batch", None, None, None)),)
    return Model(net.eval(), inputs, outputs=("logits",), axes=(Axis("batch", 1, 256),))


def augmented(inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    return (cifar.normalised(cifar.augmented(inputs[0], generator)),)


def training_rows(folder: Path) -> Rows:
    images, labels = cifar.train_images(folder)
    return Rows((images,), labels, rows=128, augment=augmented, seed=SEED)


def trained(
    name: str, folder: Path = cifar.TRAIN, work: Path = WORK, say: Callable[[str], None] = lambda _: None
) -> Model:
    """The model of this name after its recipe; what was trained before is read, or gone on with."""
    data = training_rows(folder)
    model = resnet56() if name == "pruned" else fresh_resnet20()
    checkpoint = FileCheckpoint(work / f"{name}.pt")
    trainer = partial(train_, checkpoint=checkpoint, every=max(1, len(data) // 10))
    context = Context.of(
        model,
        training=data,
        trainer=trainer,
        teacher=resnet56().module,
        seed=SEED,
        say=lambda text: say(f"{name}: {text}"),
    )
    with threads(1):
        compress_(model.module, *RECIPES[name], context=context)
    return model_of(model.module)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=cifar.TRAIN, help="the folder of the training images")
    parser.add_argument("names", nargs="*", choices=[[], *RECIPES], help="which; all where none is named")
    given = parser.parse_args()
    for name in given.names or RECIPES:
        trained(name, given.train, say=lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
