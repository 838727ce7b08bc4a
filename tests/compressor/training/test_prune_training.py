from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from compressor.compress import compress_
from compressor.model import Input, Model
from compressor.profiling.measure import threads
from compressor.pruning.prune_units import PruneNeurons
from compressor.pruning.prune_weights import PruneWeights
from compressor.step import Context
from compressor.training.prune_training import PruneGradually, TrainSparse
from compressor.training.training_data import Rows
from compressor.training.training_steps import FineTune
from worker.errors import InvalidRequest


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small are slower on several threads, and many times so beside other work."""
    with threads(1):
        yield


def problem() -> tuple[Model, Context, Rows]:
    """A net with 32 hidden neurons for a task that needs few: the sign of a sum."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    x = torch.randn(512, 6)
    rows = Rows((x,), (x[:, 0] + x[:, 1] > 0).long(), rows=32)
    model = Model(module, (Input("x", x[:2], ("batch", None)),))
    return model, Context.of(model, training=rows), rows


def accuracy(module: nn.Module, rows: Rows) -> float:
    with torch.no_grad():
        return float((module(*rows.inputs).argmax(1) == rows.targets).double().mean())


def weights(module: nn.Module) -> Tensor:
    return torch.cat([module.get_parameter(name).detach().reshape(-1) for name in ("0.weight", "2.weight")])


def test_pruning_little_by_little_reaches_its_sparsity_and_keeps_the_task() -> None:
    model, context, rows = problem()
    step = PruneGradually(sparsity=0.8, epochs=6, rate=0.1, every=4)
    done = compress_(model.module, step, context=context)
    assert done.changes
    assert float((weights(model.module) == 0).double().mean()) == pytest.approx(0.8, abs=0.01)
    assert accuracy(model.module, rows) > 0.93


def test_fine_tuning_a_pruned_model_keeps_its_zeros_and_moves_the_rest() -> None:
    model, context, rows = problem()
    compress_(model.module, PruneWeights(n_of_m="1:2"), context=context)
    before = weights(model.module)
    compress_(model.module, FineTune(epochs=3, rate=0.1), context=context)
    after = weights(model.module)
    assert torch.equal(before == 0, after == 0)
    assert not torch.equal(before, after)
    assert accuracy(model.module, rows) > 0.9


def test_neurons_driven_to_zero_are_removed_and_little_is_lost() -> None:
    model, context, rows = problem()
    train = TrainSparse(of="neurons", penalty="l2", strength=1e-2, epochs=8, rate=0.1)
    compress_(model.module, train, context=context)
    trained = accuracy(model.module, rows)
    expected = model.module(*rows.inputs).detach()
    done = compress_(model.module, PruneNeurons(below=0.1, multiple=1), context=context)
    left = model.module.get_parameter("0.weight").shape[0]
    assert left < 16, done.changes
    assert trained > 0.93
    assert accuracy(model.module, rows) >= trained - 0.005
    torch.testing.assert_close(model.module(*rows.inputs), expected, rtol=0.05, atol=0.05)


def test_single_weights_driven_to_zero_are_pruned_and_little_is_lost() -> None:
    model, context, rows = problem()
    train = TrainSparse(strength=5e-3, epochs=8, rate=0.1)
    compress_(model.module, train, context=context)
    trained = accuracy(model.module, rows)
    compress_(model.module, PruneWeights(below=0.1), context=context)
    assert float((weights(model.module) == 0).double().mean()) > 0.4
    assert accuracy(model.module, rows) >= trained - 0.005 > 0.92


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"of": "neurons", "penalty": "l1"}, "neurons as wholes are driven to zero"),
        ({"strength": 0}, "greater than 0"),
    ],
)
def test_penalties_that_do_not_work_are_refused(keys: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TrainSparse.model_validate(keys)
    with pytest.raises(ValidationError, match="expected less than end"):
        PruneGradually(sparsity=0.5, begin=0.7, end=0.7)


def test_pruning_while_training_without_data_or_layers_is_refused_before_anything_is_done() -> None:
    model, context, _ = problem()
    with pytest.raises(InvalidRequest, match="there is no training data"):
        compress_(model.module, PruneGradually(sparsity=0.5), context=Context.of(model))
    with pytest.raises(InvalidRequest, match="no Conv2d"):
        compress_(model.module, TrainSparse(of="channels", penalty="l2"), context=context)
    with pytest.raises(InvalidRequest, match='"nowhere" matches nothing'):
        compress_(model.module, PruneGradually(sparsity=0.5, prune=("nowhere",)), context=context)
