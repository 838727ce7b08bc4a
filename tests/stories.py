"""A real decoder, small enough for tests: the 260,032-weight Llama that llama2.c's authors trained on TinyStories.

"tests.stories:decoder". Its weights and tokenizer lie beside the checkout, in the layout of llama2.c (run.c).
"""

import itertools
import struct
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compressor.model import Input, Model
from worker.nouns import Axis

DATA = Path(__file__).parents[2] / "shared" / "data"
STORIES = DATA / "stories260k"
SHAKESPEARE = DATA / "tinyshakespeare" / "input.txt"
BEGIN = 1


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight
        return y


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions on neighbours. x [batch, heads, length, n]; cos, sin [length, n / 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        self.attention_norm, self.norm = _Norm(width), _Norm(width)
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, kv_heads * self.size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor, seen: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        y = self.attention_norm(x)
        q = _turned(self.q(y).unflatten(-1, (self.heads, self.size)).transpose(1, 2), cos, sin)
        k = _turned(self.k(y).unflatten(-1, (self.kv_heads, self.size)).transpose(1, 2), cos, sin)
        v = self.v(y).unflatten(-1, (self.kv_heads, self.size)).transpose(1, 2)
        k, v = (part.repeat_interleave(self.heads // self.kv_heads, 1) for part in (k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.norm(x)
        z: torch.Tensor = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return z


class Decoder(nn.Module):
    """ids, mask INT64 [batch, length] → logits FP32 [batch, length, vocabulary]."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        content = path.read_bytes()
        width, hidden, layers, heads, kv_heads, vocabulary, self.longest = struct.unpack_from("<7i", content)
        weights = torch.from_numpy(np.frombuffer(content, np.float32, offset=28).copy())
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(_Block(width, hidden, heads, kv_heads) for _ in range(layers))
        self.norm = _Norm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        names = ("attention_norm", "q", "k", "v", "o", "norm", "gate", "down", "up")
        listed = [block.get_parameter(f"{name}.weight") for name in names for block in self.layers]
        place = 0
        for weight in [self.embedding.weight, *listed, self.norm.weight]:
            weight.data = weights[place : place + weight.numel()].reshape(weight.shape)
            place += weight.numel()
        table = weights[place:].reshape(2, self.longest, width // heads // 2)
        self.register_buffer("cos", table[0].clone())
        self.register_buffer("sin", table[1].clone())

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        place = torch.arange(length, device=ids.device)
        seen = (place[None, :] <= place[:, None])[None, None] & (mask != 0)[:, None, None, :]
        cos, sin = self.get_buffer("cos")[:length], self.get_buffer("sin")[:length]
        x = self.embedding(ids)
        for block in self.layers:
            x = block(x, seen, cos, sin)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def decoder() -> Model:
    """Five blocks with grouped-query attention. Padding comes after the text."""
    module = Decoder(STORIES / "stories260K.bin").eval()
    ids = torch.randint(3, 500, (3, 7), generator=torch.Generator().manual_seed(0))
    return Model(
        module,
        (
            Input("ids", ids, ("batch", "length"), pad=0),
            Input("mask", torch.ones_like(ids), ("batch", "length"), pad=0),
        ),
        outputs=("logits",),
        axes=(Axis("batch", 1, 256), Axis("length", 2, module.longest)),
    )


class Tokenizer:
    """Byte-pair encoding as llama2.c has it: of neighbours that are one token together, the best is joined first."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        self._scores: list[float] = []
        self._ids: dict[bytes, int] = {}
        place = 4
        while place < len(content):
            score, length = struct.unpack_from("<fi", content, place)
            self._ids.setdefault(content[place + 8 : place + 8 + length], len(self._scores))
            self._scores.append(score)
            place += 8 + length

    def encoded(self, text: str) -> list[int]:
        """Takes time with the square of the text's length: give lines, not books."""
        parts = [letter.encode() for letter in " " + text]
        pieces = [piece for part in parts for piece in ([part] if part in self._ids else _bytes(part))]
        while True:
            joined = [(self._score(a + b), -place) for place, (a, b) in enumerate(itertools.pairwise(pieces))]
            best, place = max(joined, default=(None, 0))
            if best is None or best == -np.inf:
                return [BEGIN, *(self._ids[piece] for piece in pieces)]
            pieces[-place : -place + 2] = [pieces[-place] + pieces[-place + 1]]

    def _score(self, piece: bytes) -> float:
        return self._scores[self._ids[piece]] if piece in self._ids else -np.inf


def _bytes(part: bytes) -> list[bytes]:
    return [f"<0x{byte:02X}>".encode() for byte in part]


def tokenizer() -> Tokenizer:
    return Tokenizer(STORIES / "tok512.bin")
