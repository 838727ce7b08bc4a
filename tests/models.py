"""Small models that tests package and serve. Each function is a source: "tests.models:identity"."""

from pathlib import Path

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


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights: every second pixel, and new channels of zeros."""

    def __init__(self, taken: int, given: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(taken, given, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(given)
        self.conv2 = nn.Conv2d(given, given, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(given)
        self.wider = given - taken
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.wider:
            x = nn.functional.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.wider // 2, self.wider // 2)
            )
        return torch.relu(x + y)


class CifarResNet(nn.Module):
    """He et al., 2015, section 4.2: 6n+2 layers for 32x32 images; n blocks in each of three groups."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16, 1) for _ in range(blocks)))
        self.layer2 = nn.Sequential(_Block(16, 32, 2), *(_Block(32, 32, 1) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(_Block(32, 64, 2), *(_Block(64, 64, 1) for _ in range(blocks - 1)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.linear(x.mean((2, 3)))
        return logits


CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10"


def resnet20() -> Model:
    """image FP32 [batch, 3, 32, 32] → logits FP32 [batch, 10]; weights lie beside the checkout."""
    net = CifarResNet()
    saved = torch.load(CIFAR / "resnet20-12fca82f.th", map_location="cpu", weights_only=True)["state_dict"]
    net.load_state_dict({name.removeprefix("module."): weight for name, weight in saved.items()})
    return Model(net, (Input("image", torch.randn(2, 3, 32, 32), ("batch", None, None, None)),), outputs=("logits",))


class _Attention(nn.Module):
    """Embedding, one masked attention layer with its residual, and the mean over what is not masked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        seen = (mask != 0)[:, None, None, :]
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = x + self.down(torch.relu(self.up(x)))
        weight = mask.unsqueeze(-1).to(x.dtype)
        mean: torch.Tensor = (x * weight).sum(1) / weight.sum(1).clamp(min=1)
        return mean


def attention() -> Model:
    """ids, mask INT64 [batch, length], both padded with 0 → vector FP32 [batch, 16]. Has four linear layers."""
    ids = torch.randint(1, 50, (2, 5), generator=torch.Generator().manual_seed(0))
    return Model(
        _Attention(),
        (
            Input("ids", ids, ("batch", "length"), pad=0),
            Input("mask", torch.ones_like(ids), ("batch", "length"), pad=0),
        ),
        outputs=("vector",),
        axes=(Axis("batch", 1, 256), Axis("length", 1, 512)),
    )


class _Encoder(nn.Module):
    """PyTorch's own encoder, and the mean over what is not masked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = self.encoder(x, src_key_padding_mask=mask == 0)
        weight = mask.unsqueeze(-1).to(x.dtype)
        mean: torch.Tensor = (y * weight).sum(1) / weight.sum(1).clamp(min=1)
        return mean


def encoder() -> Model:
    """x FP32 [batch, length, 32], mask INT64 [batch, length], padded with 0 → vector FP32 [batch, 32]."""
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 5, dtype=torch.int64)
    mask[1:, 3:] = 0
    return Model(
        _Encoder().eval(),
        (Input("x", x, ("batch", "length", None), pad=0.0), Input("mask", mask, ("batch", "length"), pad=0)),
        outputs=("vector",),
        axes=(Axis("batch", 1, 64), Axis("length", 1, 64)),
    )


class _LanguageModel(nn.Module):
    """Causal attention over tokens and learned places; the embedding of tokens is the last layer's weight too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.place = nn.Parameter(torch.randn(1, 16, 32) * 0.1)
        self.token = nn.Embedding(96, 32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 96, bias=False)
        self.head.weight = self.token.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token(ids) + self.place[:, : ids.shape[1]]
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        logits: torch.Tensor = self.head(x + self.down(nn.functional.gelu(self.up(x))))
        return logits


def language_model() -> Model:
    """ids INT64 [batch, length] → logits FP32 [batch, length, 96]. `token` and `head` are tied."""
    ids = torch.randint(0, 96, (2, 7), generator=torch.Generator().manual_seed(0))
    return Model(
        _LanguageModel().eval(),
        (Input("ids", ids, ("batch", "length"), pad=0),),
        outputs=("logits",),
        axes=(Axis("batch", 1, 64), Axis("length", 1, 16)),
    )
