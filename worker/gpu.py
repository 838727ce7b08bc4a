"""What this machine's GPUs are and can, as far as formats are chosen by it, and what their kernels take."""

from typing import Final

import torch

from worker.expression import evaluate, symbols
from worker.program import Program, Step

INT8: Final = ("int8", (7, 5))
FP8: Final = ("fp8", (8, 9))
"""A format's name, and the compute capability that it needs."""

INT8_ROWS: Final = 17
INT8_SIDE: Final = 8
"""What `_int_mm` takes on CUDA: at least so many rows, and weights whose sides are multiples of so many."""


def memories() -> tuple[int, ...]:
    """Bytes that are free on each CUDA device that this process sees; none where there is no device."""
    if not torch.cuda.is_available():
        return ()
    return tuple(map(_free, range(torch.cuda.device_count())))


def _free(index: int) -> int:
    try:
        return torch.cuda.mem_get_info(index)[0]
    except RuntimeError:  # it has not even room for a process, or does not work
        return 0


def lacks(what: str, least: tuple[int, int], device: str) -> str | None:
    """Why `what`, which needs a compute capability of `least`, cannot run on a CUDA device; None where it can."""
    if not torch.cuda.is_available():
        return f"{what} is computed on CUDA devices, and there is none here; take what CPUs compute, such as int8"
    found = torch.cuda.get_device_capability(torch.device(device))
    if found >= least:
        return None
    return f"{what} needs compute capability {least[0]}.{least[1]}; {device} has {found[0]}.{found[1]}"


def cannot_run(program: Program, device: str) -> str | None:
    """Why a program cannot run on a CUDA device at all its sizes; None where nothing is known that would keep it."""
    fp8 = any(step.operator is torch.ops.aten._scaled_mm.default for step in program.steps)
    products = [step for step in program.steps if step.operator is torch.ops.aten._int_mm.default]
    missing = lacks(*FP8, device) if fp8 else None
    return missing or _sizes_problem(program, products) or (lacks(*INT8, device) if products else None)


def _sizes_problem(program: Program, products: list[Step]) -> str | None:
    for step in products:
        left, right = (program.values[argument.name].shape for argument in step.args)
        least = {name: max(1, program.bounds.get(name, (1, None))[0]) for size in left for name in symbols(size)}
        rows, sides = int(evaluate(left[0], least)), [evaluate(size, least) for size in right]
        if rows < INT8_ROWS or any(side % INT8_SIDE for side in sides):
            sizes = f"{rows} x {sides[0]} by {sides[0]} x {sides[1]}"
            return f"its int8 layers are made for CPUs (CUDA multiplies no {sizes}); package it for CUDA"
    return None
