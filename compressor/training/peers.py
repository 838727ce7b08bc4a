"""The processes that train one objective together: data-parallel training, equal to one process's up to rounding.

Each takes its rows of every batch, gradients are averaged by PyTorch's DistributedDataParallel (Li et al., 2020), and
what depends on the whole batch is computed over the whole batch: batch normalisation shares its means and variances
(as in PyTorch's SyncBatchNorm, which is for GPUs alone), and so does a loss that asks a `BatchMean`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from worker.errors import Unsupported


class Peers(Protocol):
    """rank: which of them this process is. count: how many there are."""

    @property
    def rank(self) -> int: ...

    @property
    def count(self) -> int: ...

    def joined(self, objective: nn.Module) -> AbstractContextManager[nn.Module]:
        """The objective as it is to be called, so that everybody's gradients are the same."""

    def mean(self, value: Tensor) -> float:
        """The mean of everybody's value."""

    def any(self, flag: bool) -> bool:
        """Whether somebody's flag is set; all get the same answer."""


class Alone:
    """One process."""

    rank = 0
    count = 1

    @contextmanager
    def joined(self, objective: nn.Module) -> Iterator[nn.Module]:
        yield objective

    def mean(self, value: Tensor) -> float:
        return float(value)

    def any(self, flag: bool) -> bool:
        return flag


class Group:
    """The processes of `torch.distributed`'s default group."""

    def __init__(self) -> None:
        self._device = torch.device("cpu")  # of what is trained: NCCL takes no tensors of the CPU

    @property
    def rank(self) -> int:
        return distributed.get_rank()

    @property
    def count(self) -> int:
        return distributed.get_world_size()

    @contextmanager
    def joined(self, objective: nn.Module) -> Iterator[nn.Module]:
        self._device = next(objective.parameters()).device
        depends = (_BatchNorm, BatchMean)
        apart: dict[nn.Module, type[nn.Module]] = {
            module: type(module) for module in objective.modules() if isinstance(module, depends)
        }
        try:
            for module, kind in apart.items():
                module.__class__ = _shared(kind)
            yield DistributedDataParallel(objective, forward_sync_buffers=False, find_unused_parameters=True)
        finally:
            for module, kind in apart.items():
                module.__class__ = kind

    def mean(self, value: Tensor) -> float:
        total = value.detach().clone()
        distributed.all_reduce(total)
        return float(total) / self.count

    def any(self, flag: bool) -> bool:
        told = torch.tensor(float(flag), device=self._device)
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        return bool(told)


class BatchMean(nn.Module):
    """The mean over all of a tensor, a constant: no gradient comes through it. Of a batch, whoever has its rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach().mean()


class SharedMean(BatchMean):
    """The same over what all processes have."""

    def forward(self, x: Tensor) -> Tensor:
        told = torch.stack([x.detach().sum(), x.new_tensor(float(x.numel()))])
        distributed.all_reduce(told)
        return told[0] / told[1]


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation over the rows of all processes. x [rows, channels, …] of one size in all but rows."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002  # torch's own name
        if input.dim() < 2:
            raise ValueError(f"expected [rows, channels, …], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        if not self.training:
            still: Tensor = super().forward(input)
            return still
        x = input.float()
        dims = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        count = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
        distributed.all_reduce(count)
        mean = _summed(x.sum(dims)) / count
        away = x - mean.view(shape)
        variance = _summed(away.square().sum(dims)) / count
        self._remember(mean.detach(), variance.detach() * (count / (count - 1).clamp(min=1)))
        y = away * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        result: Tensor = y.to(input.dtype)
        return result

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Sum(torch.autograd.Function):
    """The sum of everybody's tensors; each one's gradient is the sum of everybody's gradients of it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        del ctx
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def _summed(tensor: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def _shared(kind: type[nn.Module]) -> type[nn.Module]:
    """What takes the class's place; its tensors and their names stay."""
    if kind is BatchMean:
        return SharedMean
    if kind in {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}:
        return SharedBatchNorm
    raise Unsupported(f"{kind.__name__} cannot be trained by several workers; use one worker")
