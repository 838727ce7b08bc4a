"""Training on a real Ray cluster: two workers give what one gives, also when one of them is killed on the way."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from cluster.launch import embedded_ray
from compressor.compress import compress_
from compressor.model import Input, Model
from compressor.step import Context
from compressor.steps import read_steps
from compressor.training.train import Course, Hook, Supervised, train_
from compressor.training.train_ray import RayTrainer
from compressor.training.training_data import Rows, classes
from worker.errors import DeadlineExceeded, InvalidRequest

pytest.importorskip("pyarrow", reason='the extra "train" is not installed')

pytestmark = pytest.mark.slow

COURSE = Course(epochs=3, rate=0.1)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def data() -> Rows:
    points = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return Rows((points,), (points.sum(1) > 0).long(), rows=16)


class KilledOnce(Hook):
    """Ends the second worker's process, as the machine would, at a step, unless that has been done."""

    def __init__(self, mark: Path, step: int) -> None:
        self._mark, self._step = mark, step

    def after(self, step: int) -> None:
        if step == self._step and distributed.is_initialized() and distributed.get_rank() == 1:
            try:
                self._mark.touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with embedded_ray(tmp_path_factory.mktemp("ray"), cpus=2):
        yield


def test_two_workers_of_which_one_is_killed_give_what_one_gives(ray: None, tmp_path: Path) -> None:
    alone, together = net(), net()
    expected = train_(Supervised(alone, classes), data(), COURSE)
    hook = KilledOnce(tmp_path / "killed", 6)
    said: list[str] = []
    trainer = RayTrainer(workers=2, storage=str(tmp_path / "storage"), every=2)
    found = trainer(Supervised(together, classes), data(), COURSE, hooks=[hook], say=said.append)
    assert (tmp_path / "killed").exists()
    assert found.steps == 12
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    for name, weight in alone.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], weight, rtol=1e-3, atol=1e-4)
    assert said[0] == "training on 2 workers"
    assert said[-1].startswith("epoch 3 of 3: loss ")


@pytest.mark.parametrize(
    "keys", [{"match": "values", "hidden": {"0": "0"}}, {"temperature": 2.0}], ids=["hidden", "classes"]
)
def test_distillation_on_two_workers_gives_what_one_gives_at_the_same_batch(
    ray: None, tmp_path: Path, keys: dict[str, Any]
) -> None:
    """A layer's results are compared through a projection that is trained along, of which each worker has a copy."""
    teacher = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)).eval()
    steps = read_steps([{"kind": "distill", "epochs": 3, "rate": 0.05, "share": 0.7, **keys}])
    students = []
    for trainer in (None, RayTrainer(workers=2, storage=str(tmp_path / "storage"))):
        model = Model(net(), (Input("x", torch.randn(2, 4), ("batch", None)),))
        before = {name: weight.clone() for name, weight in model.module.state_dict().items()}
        done = compress_(
            model.module, *steps, context=Context.of(model, training=data(), trainer=trainer, teacher=teacher)
        )
        assert done.changes[0].what.startswith("12 steps, loss ")
        assert not torch.equal(before["0.weight"], model.module.get_parameter("0.weight"))
        students.append(model.module)
    alone, together = students
    for name, weight in alone.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], weight, rtol=1e-3, atol=1e-4)


def test_the_trainings_of_a_recipe_are_each_their_own(ray: None, tmp_path: Path) -> None:
    model = Model(net(), (Input("x", torch.zeros(2, 4), ("batch", None)),))
    rows = data()
    trainer = RayTrainer(workers=1, storage=str(tmp_path / "storage"))
    steps = read_steps(
        [
            {"kind": "prune_weights", "sparsity": 0.3},
            {"kind": "fine_tune", "rate": 0.1},
            {"kind": "prune_weights", "sparsity": 0.6},
            {"kind": "fine_tune", "rate": 0.1},
        ]
    )
    compress_(model.module, *steps, context=Context.of(model, training=rows, trainer=trainer))
    weights = [layer.weight for layer in model.module.modules() if isinstance(layer, nn.Linear)]
    assert [int((weight == 0).sum()) for weight in weights] == [int(0.6 * weight.numel()) for weight in weights]
    assert sorted(path.name for path in (tmp_path / "storage").iterdir()) == ["training-0", "training-1"]


def test_a_loss_that_is_no_number_and_a_spent_deadline_come_back_as_they_are(ray: None, tmp_path: Path) -> None:
    bad: Any = Rows((torch.full((32, 4), torch.nan),), torch.zeros(32, dtype=torch.int64), rows=16)
    with pytest.raises(InvalidRequest, match="the loss is nan at step 1 of 6"):
        RayTrainer(2, str(tmp_path / "a"))(Supervised(net(), classes), bad, COURSE)
    with pytest.raises(DeadlineExceeded, match="after 0 of 12 steps"):
        RayTrainer(1, str(tmp_path / "b"), seconds=0.0)(Supervised(net(), classes), data(), COURSE)


def test_more_workers_than_the_cluster_holds_are_refused_at_once(ray: None, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="3 workers need 3 CPUs and the Ray cluster has 2"):
        RayTrainer(3, str(tmp_path))(Supervised(net(), classes), data(), COURSE)
    with pytest.raises(InvalidRequest, match="at least 1, not 0"):
        RayTrainer(0, str(tmp_path))(Supervised(net(), classes), data(), COURSE)
