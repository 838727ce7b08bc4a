"""How a stage is computed: step by step, or by a package that AOTInductor compiled. Both behind one small protocol."""

import ctypes
import hashlib
import logging
import platform
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Final, Protocol

import torch

from worker.errors import Unsupported
from worker.native import NativePackage, runs_natively
from worker.processor import vector_flags
from worker.program import Interpreter, Program

_DEVICE: Final = re.compile(r"cpu|cuda(:\d{1,3})?")

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_KEPT_BYTES: Final = 1 << 30


@cache
def keep_freed_memory() -> None:
    """Makes this process keep the memory of one batch for the next, where the C library is glibc.

    Otherwise each large intermediate tensor is given back to the system and taken again, zeroed page by page: a tenth
    of the time of a batch of 16 through MiniLM. Memory stays at its peak, and does not grow beyond it.
    """
    library = ctypes.CDLL(None)
    if platform.libc_ver()[0] == "glibc":
        library.mallopt(_ARENA_MAX, 1)  # other threads' arenas map every large block on its own
        library.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


class Runtime(Protocol):
    """Computes a stage. Tensors are in the stage's order, on any device; results are on the CPU."""

    name: str

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]: ...


class Eager:
    """Runs the program's steps with PyTorch's own kernels. `program` is already on `device`."""

    name = "eager"

    def __init__(self, program: Program, device: str = "cpu") -> None:
        self._interpreter = Interpreter(program)
        self._weights = tuple(program.weights.values())
        self._device = torch.device(device)

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            moved = [tensor.to(self._device) for tensor in inputs]
            return _arrived(self._interpreter.run(moved, self._weights))


class Aot:
    """Runs a package that AOTInductor compiled for this device, instruction set and PyTorch.

    The package is native code: only load what `worker/seal.py` vouches for.
    """

    name = "aotinductor"

    def __init__(self, package: Path, device: str = "cpu") -> None:
        self._device = torch.device(device)
        natively = device == "cpu" and runs_natively(package)
        self._run = NativePackage(package).run if natively else _loaded(package, self._device)

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            return _arrived(self._run([tensor.to(self._device).contiguous() for tensor in inputs]))


def _loaded(package: Path, device: torch.device) -> Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]:
    """By PyTorch's loader, for devices whose code returns at once, and for code that needs PyTorch's dispatcher."""
    logging.getLogger("torch.export.pt2_archive._package").setLevel(logging.ERROR)
    index = -1 if device.type == "cpu" else device.index or 0
    compiled = torch._inductor.aoti_load_package(
        str(package), run_single_threaded=device.type == "cpu", device_index=index
    )

    def run(inputs: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        outputs = compiled(*inputs)
        return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)

    return run


class Passing:
    """A stage that computes nothing: what it gives is what it takes."""

    name = "eager"

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return ()


def _arrived(outputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(output.cpu().contiguous() for output in outputs)


def check_device(device: str) -> str:
    """`device` where it can be used here.

    Raises:
        Unsupported: it is not cpu, cuda or cuda:N, or there is no such device.
    """
    if not _DEVICE.fullmatch(device):
        raise Unsupported(f"device {device!r}: expected cpu, cuda or cuda:N")
    if device == "cpu":
        return device
    count = torch.cuda.device_count()
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise Unsupported(
            f"device {device!r}: this machine has {count} CUDA devices; use cpu, or a machine that has it"
        )
    return f"cuda:{index}"


@cache
def instruction_set(device: str = "cpu") -> str:
    """What compiled code for `device` relies on: "x86_64 AVX512 5d1b…" (the hash covers the CPU's vector features)."""
    if device != "cpu":
        major, minor = torch.cuda.get_device_capability(torch.device(device))
        return f"sm_{major}{minor}"
    digest = hashlib.sha256(" ".join(vector_flags()).encode()).hexdigest()[:12]
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {digest}"
