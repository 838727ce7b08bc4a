"""Every step after every other: it works and does what it is for, or is refused before anything is done."""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.compress import compress_, problems
from compressor.model import Input
from compressor.profiling.measure import threads
from compressor.sources.sources import weights_digest
from compressor.step import Context, Step
from compressor.steps import KINDS, read_steps
from compressor.training.train import Trained, train_
from compressor.training.training_data import Rows
from compressor.weights.stored import Stored
from worker.errors import InvalidRequest


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.query, self.key, self.value, self.out_proj = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            one(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for one in (self.query, self.key, self.value)
        )
        y: Tensor = self.out_proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = _Attention()
        self.up, self.down = nn.Linear(16, 48), nn.Linear(48, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        y: Tensor = x + self.down(torch.relu(self.up(x)))
        return y


class Net(nn.Module):
    """Something for every step: convolutions, a stack of blocks, attention, neurons. [batch, 3, 6, 6] → [batch, 2]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 3, stride=2))
        self.blocks = nn.ModuleList([_Block() for _ in range(2)])
        self.fc = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            y = block(y)
        logits: Tensor = self.fc(y.mean(1))
        return logits


@dataclass(slots=True)
class Trainer:
    """Trains as usual, and says whether it was asked to."""

    asked: bool = False

    def __call__(self, *given: Any, **more: Any) -> Trained:
        self.asked = True
        return train_(*given, **more)


def context(trainer: Trainer) -> Context:
    x = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    rows = Rows((x,), (x.mean((1, 2, 3)) > 0).long(), rows=8)
    inputs = (Input("x", x[:2], ("batch", None, None, None)),)
    return Context(inputs=inputs, training=rows, calibration=[(x[:4],)], trainer=trainer)


KEYS: dict[str, dict[str, Any]] = {
    "int8_static": {"layers": ["blocks"]},
    "prune_channels": {"share": 0.4},
    "prune_neurons": {"share": 0.5},
    "prune_heads": {"share": 0.5},
    "prune_layers": {"count": 1},
    "prune_weights": {"sparsity": 0.7},
    "prune_weights, 2 of 4": {"n_of_m": "2:4"},
    "prune_weights, blocks": {"sparsity": 0.5, "block": [4, 4]},
    "prune_gradually": {"sparsity": 0.7, "every": 1},
    "low_rank": {"rank": 4},
    "share_weights, 1 bit": {"bits": 1},
    "sparse, 2 of 4": {"layout": "n_of_m", "n_of_m": "2:4"},
    "sparse, blocks": {"layout": "bsr", "block": [4, 4], "run": "dense"},
}
"""By kind, and for a second way to use it; of those that are not here every default is taken."""

WAYS = list(dict.fromkeys([*KINDS, *KEYS]))
CAPTURE = ("prune_channels", "prune_neurons")
"""Capture the model to follow its units, which takes most of a second."""


def steps_of(ways: Sequence[str]) -> tuple[Step, ...]:
    return read_steps([{"kind": way.partition(",")[0], **KEYS.get(way, {})} for way in ways])


def _zeros(net: nn.Module, share: float) -> bool:
    weights = [layer.weight for layer in net.modules() if isinstance(getattr(layer, "weight", None), Tensor)]
    numbers = [weight.float() for weight in weights if isinstance(weight, Tensor) and weight.dim() > 1]
    zeros = sum(int((weight == 0).sum()) for weight in numbers)
    return zeros >= share * sum(weight.numel() for weight in numbers)


def _few_values(net: nn.Module, most: int) -> bool:
    layers = [layer for layer in net.modules() if isinstance(layer, Stored)]
    return bool(layers) and all(len(set(layer.weight.flatten().tolist())) <= most for layer in layers)


def _sizes(net: nn.Module, name: str) -> torch.Size:
    weight = net.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.shape


EFFECTS: Mapping[str, Callable[[nn.Module], bool]] = {
    "prune_channels": lambda net: "stem.0.0" in dict(net.named_modules()) or _sizes(net, "stem.0")[0] == 16,
    "prune_neurons": lambda net: "blocks.0.up.0" in dict(net.named_modules()) or _sizes(net, "blocks.0.up")[0] < 48,
    "prune_heads": lambda net: net.get_submodule("blocks.0.attention").num_heads in (1, 2),
    "prune_layers": lambda net: "blocks.1" not in dict(net.named_modules()),
    "prune_weights": lambda net: _zeros(net, 0.65),
    "prune_weights, 2 of 4": lambda net: _zeros(net, 0.4),
    "prune_weights, blocks": lambda net: _zeros(net, 0.45),
    "prune_gradually": lambda net: _zeros(net, 0.65),
    "low_rank": lambda net: "blocks.0.up.1" in dict(net.named_modules()),
    "share_weights": lambda net: _few_values(net, 16),
    "share_weights, 1 bit": lambda net: _few_values(net, 2),
}
"""What must be so in the end, whatever comes after the step. That it changes something is proven anyway."""


def check(ways: Sequence[str]) -> bool:
    """Whether these steps work one after the other; where they do not, that it was said before any work."""
    net, steps, trainer = Net(), steps_of(ways), Trainer()
    before = weights_digest(net)
    told, done = "", None
    try:
        done = compress_(net, *steps, context=context(trainer))
    except InvalidRequest as error:
        told = str(error)
    if done is None:
        assert "step " in told, f"{ways}: {told}"
        assert not trainer.asked, f"{ways}: refused after a training: {told}"
        assert weights_digest(net) == before, f"{ways}: refused after work was done: {told}"
        return False
    for way in ways:
        assert way not in EFFECTS or EFFECTS[way](net), f"{ways}: {way} has no effect in the end"
    if any(step.kind == "sparse" for step in steps):
        assert done.after < done.before, ways
    return True


@pytest.mark.parametrize("first", [way for way in WAYS if way not in CAPTURE])
def test_a_pair_of_steps_works_or_is_refused_before_any_work(first: str) -> None:
    for second in WAYS:
        if second not in CAPTURE:
            check((first, second))


@pytest.mark.slow
def test_pairs_with_steps_that_capture_the_model_work_or_are_refused_before_any_work() -> None:
    for pair in itertools.product(WAYS, repeat=2):
        if not set(pair).isdisjoint(CAPTURE):
            check(pair)


@pytest.mark.slow
def test_three_steps_work_or_are_refused_before_any_work() -> None:
    able = [
        ways for ways in itertools.product(WAYS, repeat=3) if not problems(Net(), steps_of(ways), context(Trainer()))
    ]
    worked = sum(check(ways) for ways in random.Random(0).sample(able, 100))
    assert worked > 30


@pytest.mark.parametrize(
    "ways",
    [
        ("prune_layers", "prune_weights", "share_weights", "distill"),
        ("low_rank", "prune_gradually", "int8_static"),
        ("prune_heads", "fine_tune", "prune_weights, 2 of 4", "fine_tune", "sparse, 2 of 4"),
        ("prune_weights, 2 of 4", "distill", "sparse, 2 of 4", "fine_tune"),
        ("prune_weights", "int8_weight_only"),
        ("low_rank", "distill", "bf16"),
    ],
)
def test_what_people_combine_works(ways: tuple[str, ...]) -> None:
    assert check(ways)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (
            [{"kind": "share_weights", "layers": ["blocks.0.up"]}, {"kind": "prune_gradually", "sparsity": 0.5}],
            '"prune_gradually" comes later and takes blocks.0.up too, .* give them different layers: prune: ',
        ),
        (
            [{"kind": "share_weights"}, {"kind": "train_sparse"}],
            '"train_sparse" comes later and takes stem.0 too, .* different layers: sparse:',
        ),
        (
            [
                {"kind": "prune_weights", "sparsity": 0.5},
                {"kind": "fine_tune"},
                {"kind": "sparse", **KEYS["sparse, 2 of 4"]},
            ],
            "it is not 2:4: 50% zeros elsewhere; prune it first",
        ),
        ([{"kind": "fine_tune"}, {"kind": "sparse"}], "0% zeros would take .* prune it first"),
        (
            [{"kind": "prune_gradually", "sparsity": 0.5}, {"kind": "low_rank", "rank": 4}],
            '"prune_gradually" sets weights of stem.0 to zero before, and its two factors would have none',
        ),
        ([{"kind": "train_sparse"}, {"kind": "sparse"}], "0% zeros would take .* prune it first"),
        (
            [{"kind": "distill", "hidden": {"blocks.0": "blocks.0", "blocks.9": "blocks.1"}}],
            'step 1 .*: hidden: the model has no layer "blocks.9"; the nearest is "blocks.1"',
        ),
        (
            [{"kind": "fine_tune"}, {"kind": "distill", "hidden": {"fc": "fd"}}],
            'step 2 .*: hidden: the teacher has no layer "fd"; the nearest is "fc"',
        ),
        (
            [{"kind": "prune_layers", "count": 1}, {"kind": "distill", "hidden": {"blocks.1": "blocks.1"}}],
            'step 2 .*: hidden: the model has no layer "blocks.1"',
        ),
        (
            [{"kind": "fine_tune"}, {"kind": "distill", "hidden": {"blocks.0.up": "blocks.0"}}, {"kind": "fine_tune"}],
            None,
        ),
        (
            [{"kind": "fine_tune"}, {"kind": "distill", "hidden": {"blocks.0": "stem"}}],
            r"step 2 .*: blocks.0 returns \(2, 4, 16\) and the teacher's stem \(2, 2, 2, 16\)",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_any_training(steps: list[dict[str, Any]], told: str | None) -> None:
    net, trainer = Net(), Trainer()
    before = weights_digest(net)
    if told is None:
        compress_(net, *read_steps(steps), context=context(trainer))
        return
    with pytest.raises(InvalidRequest, match=told):
        compress_(net, *read_steps(steps), context=context(trainer))
    assert not trainer.asked
    assert weights_digest(net) == before


def test_how_much_goes_by_what_a_training_did_is_not_decided_before_it() -> None:
    steps = read_steps(
        [
            {
                "kind": "train_sparse",
                "strength": 0.05,
                "rate": 0.2,
                "epochs": 30,
                "layers": ["blocks"],
                "sparse": ["blocks"],
            },
            {"kind": "prune_weights", "below": 0.8, "layers": ["blocks.0.up"]},
            {"kind": "sparse", "layers": ["blocks.0.up"]},
        ]
    )
    net = Net()
    compress_(net, *steps, context=context(Trainer()))
    assert isinstance(net.get_submodule("blocks.0.up"), Stored)
