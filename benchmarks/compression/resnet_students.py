"""The trainings behind `benchmarks.compression.resnet`: short ones, kept under build/ and resumed where they stopped.

python -m benchmarks.compression.resnet_students [--train build/cifar10/package] [student_alone …]
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.compression import cifar
from compressor.checkpoint import FileCheckpoint
from compressor.distill import Distillation
from compressor.measure import threads
from compressor.train import Course, Supervised, train_
from compressor.training_data import Rows
from tests.models import CIFAR, CifarResNet

WORK: Final = Path("build/benchmarks/resnet")

STUDENT: Final = Course(epochs=5, rate=0.1, decay=5e-4, warm_up=0.15, bfloat16=True)
"""Of ResNet-20, with the teacher and without: a fortieth of what its authors trained it for."""

SEED: Final = 0


def resnet(blocks: int, file: str) -> CifarResNet:
    net = CifarResNet(blocks)
    saved = torch.load(CIFAR / file, map_location="cpu", weights_only=True)["state_dict"]
    net.load_state_dict({name.removeprefix("module."): weight for name, weight in saved.items()})
    return net.eval()


def resnet56() -> CifarResNet:
    return resnet(9, "resnet56-4bfd9763.th")


def fresh_resnet20() -> CifarResNet:
    """As He et al. begin: normal numbers by the size of what a layer takes."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        net = CifarResNet(3)
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
    return net


def training_rows(folder: Path, *, rows: int = 128) -> Rows:
    images, labels = cifar.train_images(folder)

    def augment(inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        return (cifar.normalised(cifar.augmented(inputs[0], generator)),)

    return Rows((images,), labels, rows=rows, augment=augment, seed=SEED)


def trained(
    name: str, make: Callable[[Rows], tuple[nn.Module, nn.Module]], course: Course, folder: Path, work: Path = WORK
) -> nn.Module:
    """The student that `make` gives with its objective, trained; from `work` where that has been done before."""
    with threads(1):
        data = training_rows(folder)
        student, objective = make(data)
        checkpoint = FileCheckpoint(work / f"{name}.pt")
        every = max(1, len(data) // 10)
        train_(objective, data, course, seed=SEED, checkpoint=checkpoint, every=every, say=lambda t: print(name, t))
    return student.eval()


def student_alone(folder: Path) -> nn.Module:
    def make(data: Rows) -> tuple[nn.Module, nn.Module]:
        student = fresh_resnet20()
        return student, Supervised(student, data.loss)

    return trained("student_alone", make, STUDENT, folder)


def student_with_teacher(folder: Path) -> nn.Module:
    def make(data: Rows) -> tuple[nn.Module, nn.Module]:
        student = fresh_resnet20()
        example = (torch.zeros(2, 3, 32, 32),)
        return student, Distillation(student, resnet56(), example, loss=data.loss, temperature=4.0, share=0.9)

    return trained("student_with_teacher", make, STUDENT, folder)


TRAININGS: Final = {"student_alone": student_alone, "student_with_teacher": student_with_teacher}


def accuracy(model: nn.Module) -> float:
    """Of the 5,000 test images, in percent."""
    images, labels = cifar.test_images()
    with torch.inference_mode(), threads(1):
        right = [
            (model(cifar.normalised(images[place : place + 250])).argmax(1) == labels[place : place + 250]).sum()
            for place in range(0, len(images), 250)
        ]
    return 100 * float(sum(right)) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=cifar.TRAIN, help="the folder of the training images")
    parser.add_argument("names", nargs="*", choices=[[], *TRAININGS], help="which; all where none is named")
    given = parser.parse_args()
    for name in given.names or TRAININGS:
        print(f"{name}: {accuracy(TRAININGS[name](given.train)):.2f} %", flush=True)


if __name__ == "__main__":
    main()
