"""A small classifier with neurons that it does not need, and data: "tests.compressor.search.tiny:classifier"."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from compressor.model import Input, Model

WIDTH = 64
CLASSES = 5


class Classifier(nn.Module):
    """Residual blocks and a head. Half of each block's neurons do next to nothing."""

    def __init__(self, hidden: int, blocks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, hidden), nn.ReLU(), nn.Linear(hidden, WIDTH)) for _ in range(blocks)
        )
        self.head = nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            for name, weight in self.layers.named_parameters():
                if name.endswith("weight"):
                    weight.mul_(4)
                    (weight[::2] if name.endswith("0.weight") else weight[:, ::2]).mul_(1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        logits: torch.Tensor = self.head(x)
        return logits


def classifier(hidden: int = 1024, blocks: int = 2) -> Model:
    """x FP32 [batch, 64] → logits FP32 [batch, 5]. Five linear layers in two blocks and a head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Classifier(hidden, blocks).eval()
    return Model(module, (Input("x", torch.zeros(3, WIDTH), ("batch", None)),), outputs=("logits",))


def small_classifier() -> Model:
    """The same with 64 neurons in a block."""
    return classifier(64)


def write_data(path: Path, model: Model, records: int, seed: int) -> Path:
    """Inputs, and as labels the classes that the model itself sees in them, one in twenty wrong."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(records, WIDTH, generator=generator)
    with torch.no_grad():
        labels = model.module(x).argmax(1)
    wrong = torch.rand(records, generator=generator) < 0.05
    labels = torch.where(wrong, (labels + 1) % CLASSES, labels)
    np.savez(path, x=x.numpy(), label=labels.numpy())
    return path


def steep() -> Model:
    """One block of 64 neurons, and what lies between its layers is too large for fp16."""
    model = classifier(64, blocks=1)
    with torch.no_grad():
        for name, weight in model.module.get_submodule("layers").named_parameters():
            if name.endswith("weight"):
                weight.mul_(1e5 if name.endswith("0.weight") else 1e-5)
    return model


def thin() -> Model:
    """One block of 4 neurons: describing its graph takes more than its weights."""
    return classifier(4, blocks=1)


def broad() -> Model:
    """One block of 32,768 neurons: 16.8 MB of weights."""
    return classifier(32_768, blocks=1)


def single() -> Model:
    """x FP32 [batch, 64] → logits FP32 [batch, 5]. One linear layer, so that there is no milder mix of anything."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(WIDTH, CLASSES)).eval()
    return Model(module, (Input("x", torch.zeros(3, WIDTH), ("batch", None)),), outputs=("logits",))
