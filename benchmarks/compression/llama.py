"""The linear layers of a Llama-like block, and the whole block, at the sizes of a real model or at tiny ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.model import Input, Model


@dataclass(frozen=True, slots=True)
class Sizes:
    """heads: of queries; kv_heads: of keys and values. inner: neurons of the feed-forward network."""

    width: int
    inner: int
    heads: int
    kv_heads: int

    @property
    def head(self) -> int:
        return self.width // self.heads

    @property
    def qkv(self) -> int:
        return self.width + 2 * self.kv_heads * self.head


LLAMA_3_8B: Final = Sizes(width=4096, inner=14_336, heads=32, kv_heads=8)
TINY: Final = Sizes(width=64, inner=128, heads=4, kv_heads=2)
_BASE: Final = 500_000.0


class Block(nn.Module):
    """x [batch, tokens, width] → the same: causal attention with rotary positions and grouped keys, then SwiGLU."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.before, self.after = nn.RMSNorm(sizes.width), nn.RMSNorm(sizes.width)
        self.qkv = nn.Linear(sizes.width, sizes.qkv, bias=False)
        self.o = nn.Linear(sizes.width, sizes.width, bias=False)
        self.gate_up = nn.Linear(sizes.width, 2 * sizes.inner, bias=False)
        self.down = nn.Linear(sizes.inner, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        sizes = self.sizes
        heads = self.qkv(self.before(x)).reshape(batch, tokens, -1, sizes.head).transpose(1, 2)
        q, k, v = heads.split((sizes.heads, sizes.kv_heads, sizes.kv_heads), dim=1)
        even = torch.arange(0, sizes.head, 2, device=x.device, dtype=torch.float32)
        angles = torch.arange(tokens, device=x.device, dtype=torch.float32)[:, None] * _BASE ** (-even / sizes.head)
        q, k = _rotated(q, angles), _rotated(k, angles)
        groups = sizes.heads // sizes.kv_heads
        k, v = (part.unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(1, 2) for part in (k, v))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(seen.transpose(1, 2).reshape(batch, tokens, width))
        gate, up = self.gate_up(self.after(x)).chunk(2, dim=-1)
        y: Tensor = x + self.down(functional.silu(gate) * up)
        return y


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """x [batch, heads, tokens, head], angles FP32 [tokens, head / 2] → x, pairs of its halves turned."""
    cosine, sine = angles.cos(), angles.sin()
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1).to(x.dtype)


@dataclass(frozen=True, slots=True)
class Shape:
    """A part of the block by itself. `inputs`: its input [..., width], for so many rows in all."""

    module: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    axes: tuple[str | None, ...]

    def model(self, dtype: torch.dtype) -> Model:
        """x [rows, in], or [batch, tokens, width] of the block; its weights are the same at each call."""
        torch.manual_seed(0)
        module = self.module().eval().requires_grad_(requires_grad=False)
        sizes = [3 + place if name else -1 for place, name in enumerate(self.axes)]
        example = torch.randn([size if size > 0 else self.inputs(1).shape[-1] for size in sizes])
        return Model(module.to(dtype), (Input("x", example.to(dtype), self.axes),), outputs=("y",))


MOST_TOKENS: Final = 512
"""So many tokens a sequence, at most: of more rows the block makes a batch."""


def shapes(sizes: Sizes) -> Mapping[str, Shape]:
    """By name: the four products of a block, and the block itself."""
    layers = {
        "qkv": (sizes.width, sizes.qkv),
        "o": (sizes.width, sizes.width),
        "gate_up": (sizes.width, 2 * sizes.inner),
        "down": (sizes.inner, sizes.width),
    }
    found = {f"{name} {taken}x{given}": _linear(taken, given) for name, (taken, given) in layers.items()}

    def sequences(rows: int) -> Tensor:
        tokens = min(rows, MOST_TOKENS)
        return _drawn((rows // tokens, tokens, sizes.width))

    return found | {"block": Shape(lambda: Block(sizes), sequences, ("batch", "tokens", None))}


def _linear(taken: int, given: int) -> Shape:
    return Shape(
        lambda: nn.Sequential(nn.Linear(taken, given, bias=False)),
        lambda rows: _drawn((rows, taken)),
        ("rows", None),
    )


def _drawn(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))
