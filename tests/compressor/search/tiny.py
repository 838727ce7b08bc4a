"""A small classifier that knows its own labels, and the data: "tests.compressor.search.tiny:classifier"."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from compressor.model import Input, Model

WIDTH = 32
CLASSES = 5


class Classifier(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)) for _ in range(2)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        logits: torch.Tensor = self.head(x)
        return logits


def _made(width: int, hidden: int) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Classifier(width, hidden).eval()
    return Model(module, (Input("x", torch.zeros(3, width), ("batch", None)),), outputs=("logits",))


def classifier() -> Model:
    """x FP32 [batch, 32] → logits FP32 [batch, 5]. Five linear layers in two blocks and a head."""
    return _made(WIDTH, 64)


def wide_classifier() -> Model:
    """x FP32 [batch, 256] → logits FP32 [batch, 5]: wide enough that int8 is faster, once compiled."""
    return _made(256, 1024)


def write_data(path: Path, model: Model, records: int, seed: int) -> Path:
    """Inputs, and as labels the classes that the model itself sees in them, one in twenty wrong."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(records, *model.inputs[0].example.shape[1:], generator=generator)
    with torch.no_grad():
        labels = model.module(x).argmax(1)
    wrong = torch.rand(records, generator=generator) < 0.05
    labels = torch.where(wrong, (labels + 1) % CLASSES, labels)
    np.savez(path, x=x.numpy(), label=labels.numpy())
    return path
