"""Small models that tests package and serve. Each function is a source: "tests.models:identity"."""

import torch
from torch import nn

from compressor.model import Input, Model
from worker.nouns import Axis


class _Identity(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def identity() -> Model:
    """input FP32 [batch, width] → output, the same."""
    return Model(
        _Identity(),
        (Input("input", torch.zeros(2, 3), ("batch", "width"), pad=0.0),),
        outputs=("output",),
    )


class Toy(nn.Module):
    """Two inputs, two outputs, and a skip from the first layer to the last."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second, self.third, self.fourth = (nn.Linear(8, 8) for _ in range(4))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        skip = torch.relu(self.first(left))
        middle = torch.tanh(self.second(skip + right))
        early = middle.mean(1)
        deep = torch.relu(self.third(middle).transpose(1, 2)).transpose(1, 2)
        return early, self.fourth(deep + skip)


def toy() -> Model:
    """left, right FP32 [batch, length, 8] → early FP32 [batch, 8], late FP32 [batch, length, 8]."""
    return Model(
        Toy(),
        (
            Input("left", torch.zeros(2, 3, 8), ("batch", "length", None)),
            Input("right", torch.zeros(2, 3, 8), ("batch", "length", None)),
        ),
        outputs=("early", "late"),
        axes=(Axis("batch", 1, 64), Axis("length", 1, 128)),
    )


class _Chain(nn.Module):
    """Multiplies by two and adds one, four times: easy to check, easy to cut."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(4):
            x = x * 2.0 + 1.0
        return x


def chain() -> Model:
    """input FP32 [batch, width] → output = 16*input + 15. Eight steps: up to eight stages."""
    return Model(
        _Chain(),
        (Input("input", torch.zeros(2, 3), ("batch", "width"), pad=0.0),),
        outputs=("output",),
    )
