"""Which parameters a step trains, and that all else stays: running statistics too."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from compressor.compress import compress_, problems
from compressor.model import Input
from compressor.profiling.measure import threads
from compressor.step import Context
from compressor.training.training_data import Rows
from compressor.training.training_steps import FineTune


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


class Net(nn.Module):
    """A parameter of its own, and norms with and without weights, of which each keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gain = nn.Parameter(torch.ones(4))
        self.body = nn.Sequential(
            *(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()),
            *(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8, affine=False), nn.ReLU()),
        )
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.body(x * self.gain))
        return y


def context() -> Context:
    points = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) + 3
    rows = Rows((points,), (points.sum(1) > 12).long(), rows=16)
    return Context(inputs=(Input("x", points[:2], ("batch", None)),), training=rows)


def changed(*layers: str) -> set[str]:
    """The names of tensors that differ after a fine-tuning of these layers."""
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    compress_(net, FineTune(layers=layers, rate=0.1), context=context())
    assert not any(module.training for module in net.modules())
    return {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def test_what_is_frozen_keeps_its_running_statistics() -> None:
    assert changed("fc") == {"fc.weight", "fc.bias"}


def test_norms_whose_layers_are_trained_go_on_keeping_statistics() -> None:
    first = {"body.0.weight", "body.1.weight", "body.1.bias", *(f"body.1.{name}" for name in STATISTICS)}
    assert changed("body") == first | {"body.3.weight", *(f"body.4.{name}" for name in STATISTICS)}
    assert changed("fc", "body.0", "body.1") >= first
    assert changed("body.0", "body.3", "fc").isdisjoint(f"body.1.{name}" for name in STATISTICS)


def test_a_parameter_of_the_model_itself_is_trained_where_the_patterns_take_it() -> None:
    assert changed("*") == set(Net().state_dict())
    assert changed("gain") == {"gain"}
    assert "gain" not in changed("*", "!gain")
    assert problems(Net(), [FineTune(layers=("gan",))], context()) == [
        'step 1 ("fine_tune"): layers: "gan" matches nothing; the nearest is "gain"'
    ]
