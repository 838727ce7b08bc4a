"""Students that learn from teachers: what is compared, what is thrown away, and how recipes hold it."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from compressor.compress import compress_, problems
from compressor.model import Input
from compressor.profiling.measure import threads
from compressor.step import Context
from compressor.steps import described, read_steps
from compressor.training.distill import (
    Distillation,
    DistillationNetwork,
    NetworkDistillation,
    recorded,
    soft_loss,
    value_loss,
)
from compressor.training.train import Course, train_
from compressor.training.training_data import Rows, classes
from compressor.training.training_steps import DistillNetwork, FineTune
from worker.errors import InvalidRequest

EXAMPLE = (torch.zeros(2, 4),)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


def mlp(width: int = 16, *, seed: int = 0) -> nn.Sequential:
    """Classes that are far apart: its logits differ by some units."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(2 if weight.dim() > 1 else 1)
    return net


def data(count: int = 256, *, targets: torch.Tensor | None = None) -> Rows:
    points = torch.randn(count, 4, generator=torch.Generator().manual_seed(7))
    return Rows((points,), torch.zeros(count, dtype=torch.int64) if targets is None else targets, rows=16)


def apart(student: nn.Module, teacher: nn.Module, rows: Rows) -> float:
    with torch.no_grad():
        return float(soft_loss(student(rows.inputs[0]), teacher(rows.inputs[0]), 1.0))


def test_the_soft_loss_is_hintons() -> None:
    student, teacher = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0]])
    p = [math.exp(value / 2) for value in (3, 0, 0)]
    q = [math.exp(value / 2) for value in (1, 2, 0)]
    p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
    expected = 4 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(soft_loss(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)
    assert float(soft_loss(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-7)


def test_the_value_loss_is_in_units_of_the_teacher() -> None:
    teacher = torch.randn(4, 5) * 100
    assert float(value_loss(torch.zeros(4, 5), teacher)) == pytest.approx(1)
    assert float(value_loss(teacher, teacher)) == 0


def test_a_student_comes_near_its_teacher_without_any_target() -> None:
    teacher, student, rows = mlp(seed=1), mlp(8, seed=2), data()
    before = apart(student, teacher, rows)
    objective = Distillation(student, teacher, EXAMPLE, loss=None, temperature=2.0)
    weights = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    train_(objective, rows, Course(epochs=10, rate=0.05))
    assert apart(student, teacher, rows) < 0.1 * before
    assert all(torch.equal(weight, weights[name]) for name, weight in teacher.state_dict().items())
    assert not any("teacher" in name for name in objective.state_dict())


def test_hidden_states_of_another_width_are_compared_through_a_projection_that_is_trained() -> None:
    teacher, student, rows = mlp(16, seed=1), mlp(8, seed=2), data()
    objective = Distillation(student, teacher, EXAMPLE, loss=None, hidden={"1": "1", "3": "3"}, share=0.5)
    assert [tuple(weight.shape) for weight in objective.projections.parameters()] == [(16, 8), (16, 8)]
    first = next(objective.projections.parameters()).detach().clone()

    def inside() -> float:
        with torch.no_grad(), recorded(student, ("3",)) as mine, recorded(teacher, ("3",)) as theirs:
            student(rows.inputs[0])
            teacher(rows.inputs[0])
            return float(value_loss(objective.projections[1](mine["3"]), theirs["3"]))

    before = inside()
    train_(objective, rows, Course(epochs=10, rate=0.05))
    assert inside() < 0.5 * before
    assert not torch.equal(first, next(objective.projections.parameters()))


def test_images_are_compared_channel_for_channel() -> None:
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 2))
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    example = torch.randn(2, 3, 8, 8)
    objective = Distillation(student, teacher, (example,), loss=None, hidden={"0": "0"})
    assert tuple(next(objective.projections.parameters()).shape) == (8, 4)
    assert objective((example,), torch.zeros(2)).isfinite()
    with pytest.raises(InvalidRequest, match=r"0 returns \(2, 6, 6, 4\) and the teacher's 1 \(2, 288\)"):
        Distillation(student, teacher, (example,), loss=None, hidden={"0": "1"})


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"student returns \(2, 3\) and the teacher \(2, 4\)"):
        Distillation(mlp(), nn.Linear(4, 4), EXAMPLE, loss=None)
    with pytest.raises(InvalidRequest, match="Sequential has no layer 9"):
        Distillation(mlp(), mlp(), EXAMPLE, loss=None, hidden={"9": "1"})


def test_a_distillation_network_uses_the_teachers_output_and_works_without() -> None:
    rows = data()
    teacher = mlp(32, seed=1)
    with torch.no_grad():
        labels = teacher(rows.inputs[0] * 1.0).argmax(1)
    student = mlp(2, seed=2)
    network = DistillationNetwork(student, 3, 3)
    points = rows.inputs[0]
    told = teacher(points).detach()
    assert torch.equal(network(points, told), student(points))  # the correction begins at zero
    taught = data(targets=labels)
    objective = NetworkDistillation(network, teacher, loss=classes, temperature=2.0)
    train_(objective, taught, Course(epochs=15, rate=0.05))
    network.eval()
    with torch.no_grad():
        alone = (network(points, None).argmax(1) == labels).float().mean()
        together = (network(points, told).argmax(1) == labels).float().mean()
        assert torch.equal(network(points, None), student(points))
    assert together > 0.9
    assert 0.5 < alone < together


def context(rows: Rows, teacher: nn.Module | None = None) -> Context:
    return Context(inputs=(Input("x", EXAMPLE[0], ("batch", None)),), training=rows, teacher=teacher)


def test_steps_train_inside_a_recipe_and_the_teacher_is_the_model_as_it_was() -> None:
    model, rows = mlp(), data()
    whole = mlp()
    steps = read_steps([{"kind": "distill", "epochs": 6, "rate": 0.05, "share": 1, "temperature": 1}])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    before = apart(model, whole, rows)
    done = compress_(model, *steps, context=context(rows, whole))
    assert apart(model, whole, rows) < 0.2 * before
    assert "96 steps, loss" in done.changes[0].what
    assert read_steps(described(steps)) == steps
    assert not any(module.training for module in model.modules())


def test_only_the_named_layers_are_trained() -> None:
    model, rows = mlp(), data(targets=torch.arange(256) % 3)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    compress_(model, FineTune(layers=("4",)), context=context(rows))
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"4.weight", "4.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_distillation_networks_student_learns_as_a_step() -> None:
    model, whole, rows = mlp(8, seed=4), mlp(), data()
    before = apart(model, whole, rows)
    compress_(model, DistillNetwork(epochs=4, rate=0.05), context=context(rows, whole))
    assert apart(model, whole, rows) < before


def test_steps_that_cannot_train_say_why() -> None:
    model = mlp()
    without = Context(inputs=context(data()).inputs)
    assert problems(model, [FineTune()], without) == [
        'step 1 ("fine_tune"): it trains and there is no training data; give some'
    ]
    assert "nothing there can be trained" in problems(model, [FineTune(layers=("1",))], context(data()))[0]
    with pytest.raises(InvalidRequest, match='takes no such key; the nearest is "temperature"'):
        read_steps([{"kind": "distill", "temperatur": 3}])
    with pytest.raises(InvalidRequest, match=r"steps\.0\.rate: .* not -1"):
        read_steps([{"kind": "fine_tune", "rate": -1}])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_narrower_student_in_other_floats_learns_from_layers(dtype: torch.dtype) -> None:
    student, teacher, rows = mlp(8, seed=1).to(dtype), mlp().to(dtype), data()
    rows = Rows((rows.inputs[0].to(dtype),), rows.targets, rows=16)
    example = (EXAMPLE[0].to(dtype),)
    objective = Distillation(student, teacher, example, loss=None, hidden={"2": "2"}, match="values")
    found = train_(objective, rows, Course(epochs=8, rate=0.02))
    assert found.losses[-1] < 0.7 * found.losses[0]
