"""Several processes train what one trains, up to rounding, batch normalisation included."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

from compressor.training.distill import Distillation
from compressor.training.peers import Group, SharedBatchNorm
from compressor.training.train import Course, Supervised, train_
from compressor.training.training_data import Rows, classes
from worker.errors import InvalidRequest, Unsupported

COURSE = Course(epochs=2, rate=0.1, clip=1.0)


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * 16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)),
    )


def data(rows: int = 7) -> Rows:
    """Batches that two workers cannot share out evenly."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(42, 3, 6, 6, generator=generator)
    return Rows((images,), images.mean((1, 2, 3)).mul(20).long().clamp(0, 2), rows=rows)


def objective(seed: int = 1) -> Distillation:
    return Distillation(net(seed), net(5), (torch.zeros(2, 3, 6, 6),), loss=classes, share=0.5)


def work(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=count)
    taught = objective()
    found = train_(taught, data(), COURSE, peers=Group())
    problems = []
    for bad, kind in ((_few, InvalidRequest), (_own, Unsupported), (_nan_on_one, InvalidRequest)):
        try:
            bad(rank)
        except kind as error:
            problems.append(str(error))
    torch.save([taught.state_dict(), list(found.losses), problems], f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def _few(_: int) -> None:
    train_(objective(), data(1), COURSE, peers=Group())


class Own(nn.BatchNorm2d):
    pass


def _own(_: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Own(4), nn.Flatten(), nn.Linear(4 * 16, 3))
    train_(Supervised(model, classes), data(), COURSE, peers=Group())


def _nan_on_one(rank: int) -> None:
    bad = data()
    if rank == 1:
        bad.inputs[0].fill_(torch.nan)
    train_(objective(), bad, COURSE, peers=Group())


def test_two_processes_train_what_one_trains_up_to_rounding(tmp_path: Path) -> None:
    alone = objective()
    expected = train_(alone, data(), COURSE)
    spawn(work, (2, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    results: list[Any] = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for state, losses, problems in results:
        assert losses == pytest.approx(expected.losses, rel=1e-4)
        for name, weight in alone.state_dict().items():
            torch.testing.assert_close(state[name], weight, rtol=1e-3, atol=1e-4)
        assert problems[0] == "a batch of 1 rows cannot be shared by 2 workers"
        assert problems[1] == "Own cannot be trained by several workers; use one worker"
        assert problems[2].startswith("the loss is nan at step 1 of 12")
    assert all(torch.equal(a, b) for a, b in zip(results[0][0].values(), results[1][0].values(), strict=True))


@pytest.mark.cuda
def test_a_group_on_a_gpu_trains_what_one_process_trains(tmp_path: Path) -> None:
    alone, together = Supervised(net(1), classes), Supervised(net(1), classes)
    expected = train_(alone, data(), COURSE, device="cuda")
    distributed.init_process_group("nccl", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        found = train_(together, data(), COURSE, device="cuda", peers=Group())
    finally:
        distributed.destroy_process_group()
    assert found.losses == pytest.approx(expected.losses, rel=1e-3)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 5, 5)])
def test_shared_batch_normalisation_of_one_process_is_pytorchs(shape: tuple[int, ...], tmp_path: Path) -> None:
    distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        theirs = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](4)
        ours = copy.deepcopy(theirs)
        ours.__class__ = SharedBatchNorm
        x = torch.randn(shape) * 3 + 1
        left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
        weight = torch.randn(shape)
        results: list[Tensor] = [ours(left), theirs(right)]
        for result in results:
            (result * weight).sum().backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(left.grad, right.grad)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    finally:
        distributed.destroy_process_group()
