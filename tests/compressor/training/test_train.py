"""One loop for every training: it learns, resumes to the same weights, and refuses what cannot be trained."""

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.profiling.measure import threads
from compressor.training.checkpoint import FileCheckpoint, State
from compressor.training.train import Course, Hook, Supervised, rate_at, train_
from compressor.training.training_data import Rows, classes
from worker.errors import DeadlineExceeded, InvalidRequest


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


def rows(count: int = 64, *, seed: int = 0, batch: int = 8) -> Rows:
    """Points of two classes that a line separates."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 4, generator=generator)
    return Rows((points,), (points.sum(1) > 0).long(), rows=batch)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


class StopsAt(Hook):
    def __init__(self, step: int) -> None:
        self._step = step

    def after(self, step: int) -> None:
        if step == self._step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_training_learns_and_says_so(optimiser: str) -> None:
    model, data = net(), rows(256)
    said: list[str] = []
    rate = {"sgd": 0.1, "adamw": 0.01}[optimiser]
    course = Course.model_validate({"epochs": 4, "rate": rate, "optimiser": optimiser})
    found = train_(Supervised(model, data.loss), data, course, say=said.append)
    assert found.steps == 4 * 32
    assert found.losses[-1] < 0.6 * found.losses[0]
    assert said == [f"epoch {n + 1} of 4: loss {loss:.4f}" for n, loss in enumerate(found.losses)]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_random_numbers_alone() -> None:
    first, second, data = net(), net(), rows()
    torch.manual_seed(5)
    train_(Supervised(first, classes), data, Course(epochs=2), seed=3)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    train_(Supervised(second, classes), data, Course(epochs=2), seed=3)
    assert torch.equal(torch.rand(1), drawn)
    assert same(first, second)
    third = net()
    train_(Supervised(third, classes), data, Course(epochs=2), seed=4)
    assert not same(first, third)


@pytest.mark.parametrize("step", [3, 8, 13])
def test_an_interrupted_training_goes_on_to_the_very_same_weights(tmp_path: Path, step: int) -> None:
    data, course = rows(), Course(epochs=2, rate=0.1)
    whole, broken, resumed = net(), net(), net()
    expected = train_(Supervised(whole, classes), data, course)
    checkpoint = FileCheckpoint(tmp_path / "a" / "training.pt")
    with pytest.raises(KeyboardInterrupt):
        train_(Supervised(broken, classes), data, course, checkpoint=checkpoint, every=3, hooks=[StopsAt(step)])
    found = train_(Supervised(resumed, classes), data, course, checkpoint=checkpoint, hooks=[Hook()])
    assert same(whole, resumed)
    assert found.losses == pytest.approx(expected.losses)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["training.pt"]


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    data, course, checkpoint = rows(), Course(epochs=1), FileCheckpoint(tmp_path / "t.pt")
    first, second = net(), net()
    train_(Supervised(first, classes), data, course, checkpoint=checkpoint)
    found = train_(Supervised(second, classes), data, course, checkpoint=checkpoint, hooks=())
    assert same(first, second)
    assert found.steps == 8


def test_a_deadline_stops_between_two_steps_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    data, checkpoint = rows(), FileCheckpoint(tmp_path / "t.pt")
    with pytest.raises(DeadlineExceeded, match="after 0 of 8 steps"):
        train_(Supervised(net(), classes), data, Course(), checkpoint=checkpoint, deadline=time.monotonic() - 1)
    saved = checkpoint.read()
    assert saved is not None
    assert saved["step"] == 0


def test_a_loss_that_is_no_number_is_refused_before_it_changes_a_weight() -> None:
    model = net()
    before = copy.deepcopy(list(model.parameters()))
    bad = Rows((torch.full((8, 4), torch.nan),), torch.zeros(8, dtype=torch.int64), rows=8)
    with pytest.raises(InvalidRequest, match=r"the loss is nan at step 1 of 1; lower the rate \(0.01\)"):
        train_(Supervised(model, classes), bad, Course())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_what_cannot_be_trained_is_refused() -> None:
    data = rows()
    with pytest.raises(InvalidRequest, match="no parameter requires a gradient"):
        train_(Supervised(net().requires_grad_(False), classes), data, Course())
    with pytest.raises(InvalidRequest, match="no rows to train on"):
        Rows((torch.zeros(0, 4),), torch.zeros(0))
    with pytest.raises(InvalidRequest, match=r"64 targets and inputs of \[63\] rows"):
        Rows((data.inputs[0][:-1],), data.targets)
    with pytest.raises(InvalidRequest, match=r"returns \(8, 2\) and the targets are \(8,\)"):
        train_(Supervised(net(), Rows(data.inputs, data.targets, towards="values").loss), data, Course())


def test_data_that_break_their_promise_are_refused() -> None:
    one = Rows((torch.zeros(8, 4),), torch.zeros(8, dtype=torch.int64), rows=8)

    class More:
        def __len__(self) -> int:
            return 1

        def batches(self, epoch: int) -> Any:
            return [*one.batches(epoch), *one.batches(epoch)]

        def loss(self, outputs: Any, targets: Tensor) -> Tensor:
            return classes(outputs, targets)

    class Fewer(More):
        def __len__(self) -> int:
            return 3

    with pytest.raises(InvalidRequest, match="has more than the 1 batches"):
        train_(Supervised(net(), classes), More(), Course())
    with pytest.raises(InvalidRequest, match="has 2 batches; the data promise 3"):
        train_(Supervised(net(), classes), Fewer(), Course())


def test_a_checkpoint_of_another_training_or_model_is_refused(tmp_path: Path) -> None:
    data, path = rows(), tmp_path / "t.pt"
    train_(Supervised(net(), classes), data, Course(), checkpoint=FileCheckpoint(path))
    with pytest.raises(InvalidRequest, match="is of another training"):
        train_(Supervised(net(), classes), data, Course(rate=0.5), checkpoint=FileCheckpoint(path))
    with pytest.raises(InvalidRequest, match="is of another model"):
        train_(Supervised(nn.Linear(4, 2), classes), data, Course(), checkpoint=FileCheckpoint(path))


class Bad:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "half", "pickle", "list"])
def test_a_damaged_or_dangerous_checkpoint_is_refused(
    tmp_path: Path, content: bytes | str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "half":
        FileCheckpoint(path).write({"weights": torch.zeros(1000)})
        path.write_bytes(path.read_bytes()[:2000])
    else:
        torch.save(Bad() if content == "pickle" else [1], path)
    with pytest.raises(InvalidRequest, match=r"t\.pt: .*remove it"):
        FileCheckpoint(path).read()
    assert "code ran" not in capsys.readouterr().out


def test_no_space_left_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    checkpoint = FileCheckpoint(tmp_path / "t.pt")
    checkpoint.write({"step": 1})
    (tmp_path / "t.pt.tmp").mkdir()  # writing beside it fails
    with pytest.raises((OSError, RuntimeError)):
        checkpoint.write({"step": 2})
    state: State | None = checkpoint.read()
    assert state == {"step": 1}


class Shrink(Hook):
    """A penalty on the first layer, and a count of what it was told."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer, self.told, self.steps = layer, torch.zeros(()), 0

    def begin(self, steps: int) -> None:
        self.steps = steps

    def penalty(self) -> Tensor:
        return 0.1 * self.layer.weight.abs().sum()

    def after(self, step: int) -> None:
        self.told = torch.tensor(float(step))

    def state(self) -> dict[str, Tensor]:
        return {"told": self.told}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.told = state["told"]


def test_a_hook_adds_its_penalty_and_its_state_is_kept(tmp_path: Path) -> None:
    data = rows()
    plain, shrunk = net(), net()
    train_(Supervised(plain, classes), data, Course(epochs=3, rate=0.05))
    hook = Shrink(shrunk[0])  # type: ignore[index]
    checkpoint = FileCheckpoint(tmp_path / "t.pt")
    train_(Supervised(shrunk, classes), data, Course(epochs=3, rate=0.05), hooks=[hook], checkpoint=checkpoint)
    assert hook.steps == hook.told == 24
    weights = [model[0].weight.abs().sum() for model in (plain, shrunk)]  # type: ignore[index]
    assert weights[1] < 0.5 * weights[0]
    again = Shrink(net()[0])  # type: ignore[index]
    train_(Supervised(net(), classes), data, Course(epochs=3, rate=0.05), hooks=[again], checkpoint=checkpoint)
    assert again.told == 24


@given(epochs=st.integers(1, 50), warm=st.floats(0, 1), steps=st.integers(1, 300))
def test_the_rate_rises_to_its_highest_and_falls(epochs: int, warm: float, steps: int) -> None:
    course = Course(epochs=epochs, rate=2.0, warm_up=warm)
    rates = [rate_at(course, step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 2.0 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
