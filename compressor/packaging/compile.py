"""Compiles a stage with AOTInductor into a package that needs no Python and no compiler to run."""

import errno
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch._dynamo.exc import UserError
from torch._inductor import exc
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.export import Dim
from torch.nn.attention import SDPBackend, sdpa_kernel

from compressor.capture import patient_file
from compressor.packaging.int8_product import CALL, Kernel, kernel_here, options_of, with_kernel
from compressor.packaging.rewrite import rewrite
from compressor.profiling.measure import example_inputs
from compressor.quantization.quantize import int8_convolutions, int8_layers, operator_name
from worker.errors import Internal
from worker.expression import Size, solve
from worker.program import Program, ProgramModule

INT8_CALLS: Final = (b"_int_mm_out(", CALL)
"""What the generated code calls for an int8 matrix product: PyTorch's, or our kernel."""
INT8_CONVOLUTION_CALLS: Final = (b"_qconv",)
"""What the generated code calls for an int8 convolution: its name begins so in every form."""

INT8_OPTIONS: Final = {
    # A row is read twice, for its largest value and to scale it: what makes it (GELU) is computed once, and kept.
    "realize_opcount_threshold": 8,
    # One rounding less for each a*b + c; int8 rounds far more coarsely.
    "cpp.enable_floating_point_contract_flag": "fast",
}
"""What the compiler is told besides for stages with int8 layers, where it made them faster."""


ATTENTION: Final = (
    (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
    (SDPBackend.MATH,),
)
"""Kernels of attention among which PyTorch may choose on a GPU, where its own choice binds the sizes that are captured:
cuDNN's takes a batch of 65,535 at most.
"""


class CompileError(Internal):
    """A stage that AOTInductor could not compile, or compiled without what makes it fast."""


def compiler_problem() -> str:
    """Why nothing can be compiled here; "" where it can."""
    try:
        get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError, OSError) as error:
        return f"no C++ compiler is found ({type(error).__name__}); install g++ or clang++ and compile later"
    return ""


def compile_stage(
    stage: Program, path: Path, *, frozen: bool, device: str = "cpu", kernel: Kernel | Literal["here"] | None = "here"
) -> None:
    """Writes the compiled package of `stage` to `path`.

    Args:
        frozen: weights become constants of the code, which oneDNN may lay out anew.
        kernel: of int8 products; None: PyTorch's. By default the one that is the fastest on this processor.

    Raises:
        CompileError: it cannot be compiled, or its int8 layers are not int8 any more.
        OSError: there is no room for the package, or for what the compiler writes meanwhile.
    """
    sizes = {name: max(2, hint) for name, hint in stage.hints.items()}
    quantized = device == "cpu" and int8_layers(stage) > 0  # what follows from it was measured on CPUs
    kernel = kernel_here() if kernel == "here" else kernel
    kernel = kernel if quantized else None
    prepared = rewrite(stage) if quantized else stage  # in fp32, oneDNN fuses the GELU into the layer
    examples = tuple(tensor.to(device) for tensor in example_inputs(stage, sizes))
    options = {"freezing": frozen, "cpp.dynamic_threads": True} | (INT8_OPTIONS if quantized else {})
    options |= options_of(kernel) if kernel else {}
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with patient_file(path) as file:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                placed = (with_kernel(prepared, kernel) if kernel else prepared).on(device)

                def make() -> None:
                    exported = _exported(placed, examples, dynamic_shapes(stage))
                    torch._inductor.aoti_compile_and_package(exported, package_path=file, inductor_configs=options)

                attends = any(operator_name(step) == "aten::scaled_dot_product_attention" for step in stage.steps)
                with_attention(make, ATTENTION if attends and device != "cpu" else ())
        except Exception as error:  # the compiler raises errors of many unrelated types
            if (full := os.strerror(errno.ENOSPC)) in str(error):  # told by a compiler's words, too
                raise OSError(errno.ENOSPC, full, cache_dir()) from error
            raise CompileError(f"AOTInductor: {type(error).__name__}: {str(error).strip()[:900]}") from error
        finally:
            logging.disable(before)
    convolutions = device == "cpu" and frozen and int8_convolutions(stage) > 0
    for names, wanted in {INT8_CALLS: quantized, INT8_CONVOLUTION_CALLS: convolutions}.items():
        if wanted and not calls(path, names):
            words = " or ".join(name.decode() for name in names)
            raise CompileError(f"the generated code has no {words}: the stage's int8 layers are lost")


def _exported(
    placed: Program, examples: tuple[Tensor, ...], shapes: tuple[dict[int, Any], ...]
) -> torch.export.ExportedProgram:
    """The program was captured without guards on its sizes: those that a second capture finds (that a size of at least
    1 times 384 is at least 384) are truths that it cannot prove.
    """
    return torch.export.export(
        ProgramModule(placed).eval(),
        examples,
        dynamic_shapes=(shapes,),
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def with_attention(make: Callable[[], None], others: Sequence[Sequence[SDPBackend]]) -> None:
    """Calls `make`, and again with other kernels of attention, in turn, while it finds sizes bound.

    Raises:
        UserError: of the first attempt, where sizes are bound with all of them.
    """
    try:
        make()
    except UserError:
        for kernels in others:
            with suppress(UserError), sdpa_kernel(list(kernels)):
                make()
                return
        raise


def dynamic_shapes(stage: Program) -> tuple[dict[int, Any], ...]:
    """For each input, the dimensions that vary, in torch.export's terms."""
    dims: dict[str, Any] = {}

    def dim(size: Size) -> Any:
        solution = solve(size)
        if solution is None:
            return Dim.AUTO
        symbol, factor, offset = solution
        if symbol not in dims:
            minimum, maximum = stage.bounds.get(symbol, (1, None))
            dims[symbol] = Dim(symbol, min=max(1, minimum), max=maximum)
        derived = dims[symbol]
        derived = derived if factor == 1 else factor * derived
        return derived if offset == 0 else derived + offset

    return tuple(
        {axis: dim(size) for axis, size in enumerate(stage.values[name].shape) if not isinstance(size, int)}
        for name in stage.inputs
    )


def calls(package: Path, names: Sequence[bytes]) -> bool:
    """Whether the generated code in a package calls one of what is named so."""
    with zipfile.ZipFile(package) as archive:
        code = [archive.read(entry) for entry in archive.namelist() if entry.endswith(".cpp")]
    return any(name in text for name in names for text in code)
