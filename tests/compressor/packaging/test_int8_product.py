from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.capture import capture
from compressor.model import Input, Model
from compressor.packaging.compile import calls, compile_stage, compiler_problem
from compressor.packaging.int8_product import (
    AVX2,
    CALL,
    VNNI,
    Kernel,
    int8_product,
    kernel_for,
    pack,
    unpacked,
    with_kernel,
)
from worker.processor import vector_flags
from worker.program import Program
from worker.runtime import Aot, Eager

KERNELS = (AVX2, VNNI)
RUNNABLE = [
    pytest.param(
        kernel,
        marks=[
            pytest.mark.skipif(flag not in vector_flags(), reason="its instructions are not in this processor"),
            pytest.mark.skipif(bool(compiler_problem()), reason="there is no C++ compiler"),
        ],
        id=flag,
    )
    for kernel, flag in ((AVX2, "avx2"), (VNNI, "avx512_vnni"))
]


class Products(nn.Module):
    """x [rows, depth] int8 → products of as much of its rows as each weight [columns, depth] wants, int32."""

    def __init__(self, *shapes: tuple[int, int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for place, shape in enumerate(shapes):
            weight = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
            weight[0] = -128
            self.register_buffer(f"weight_{place}", weight)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch._int_mm(x[:, : weight.shape[1]], weight.t()) for weight in self.buffers())


def _captured(module: nn.Module, depth: int, folder: Path) -> Program:
    x = torch.zeros(3, depth, dtype=torch.int8)
    return capture(Model(module, (Input("x", x, ("batch", None)),)), folder / "program.pt2")


@given(st.sampled_from(KERNELS), st.integers(1, 80), st.integers(1, 40))
def test_what_is_packed_can_be_unpacked(kernel: Kernel, columns: int, depth: int) -> None:
    weight = torch.randint(-128, 128, (columns, depth), dtype=torch.int8)
    packed = pack(weight, kernel)
    assert packed.shape[2:] == (kernel.columns, kernel.together)
    assert torch.equal(unpacked(packed, columns, depth), weight.t())
    x = torch.randint(-128, 128, (3, depth), dtype=torch.int8)
    assert torch.equal(int8_product(x, packed, columns), (x.double() @ weight.double().t()).to(torch.int32))


@pytest.mark.parametrize(
    ("flags", "capability", "kernel"),
    [
        (("avx2",), "AVX2", AVX2),
        (("avx2", "avx512f", "avx512_vnni"), "AVX512", VNNI),
        (("avx2", "avx512f", "avx512_vnni"), "AVX2", None),  # PyTorch was told to be modest
        (("amx_int8", "avx2", "avx512f", "avx512_vnni"), "AVX512", None),
        (("avx2", "avx_vnni"), "AVX2", None),
        (("asimd",), "DEFAULT", None),
    ],
)
def test_the_kernel_is_chosen_by_what_the_processor_can(
    flags: tuple[str, ...], capability: str, kernel: Kernel | None
) -> None:
    assert kernel_for(flags, capability) == kernel


@pytest.mark.parametrize(("kernel", "shape"), [(AVX2, (1, 4, 16, 2)), (VNNI, (1, 2, 64, 4))])
def test_products_with_a_weight_get_the_kernel_and_others_stay(
    kernel: Kernel, shape: tuple[int, ...], tmp_path: Path
) -> None:
    class Net(Products):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return *super().forward(x), torch._int_mm(x, x.t())

    program = with_kernel(_captured(Net((5, 8)), 8, tmp_path), kernel)
    used = [str(step.operator) for step in program.steps]
    assert used.count("shardline.int8_product.default") == 1
    assert used.count("aten._int_mm.default") == 1
    assert [tuple(weight.shape) for weight in program.weights.values()] == [shape]


@pytest.mark.parametrize("kernel", RUNNABLE)
def test_the_compiled_kernel_is_exact_for_every_rest_of_rows_columns_and_depth(kernel: Kernel, tmp_path: Path) -> None:
    depth = 1100
    shapes = [(1, depth), (16, depth), (37, depth), (1, 1), (17, 3), (48, 31), (15, 514), (130, 66), (64, 128)]
    program = _captured(Products(*shapes), depth, tmp_path)
    compile_stage(program, tmp_path / "compiled.pt2", frozen=True, kernel=kernel)
    assert calls(tmp_path / "compiled.pt2", (CALL,))
    compiled, plain = Aot(tmp_path / "compiled.pt2"), Eager(program)
    for rows in (1, 2, 3, 4, 5, 6, 64, 331):
        x = torch.randint(-128, 128, (rows, depth), dtype=torch.int8)
        x[0] = -128
        for found, expected in zip(compiled.run((x,)), plain.run((x,)), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", RUNNABLE)
def test_rows_that_lie_across_are_taken(kernel: Kernel, tmp_path: Path) -> None:
    class Across(Products):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return super().forward(x.t())

    item = Input("x", torch.zeros(6, 3, dtype=torch.int8), (None, "batch"))
    program = capture(Model(Across((5, 6)), (item,)), tmp_path / "program.pt2")
    compile_stage(program, tmp_path / "compiled.pt2", frozen=True, kernel=kernel)
    compiled = Aot(tmp_path / "compiled.pt2")
    (weight,) = program.weights.values()
    for rows in (1, 4):
        x = torch.randint(-128, 128, (6, rows), dtype=torch.int8)
        # PyTorch's own product of one such row is nonsense where it is oneDNN's.
        assert torch.equal(compiled.run((x,))[0], (x.t().double() @ weight.t().double()).to(torch.int32))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("columns", "depth"), [(0, 3), (3, 0), (0, 0)])
def test_empty_weights_can_be_packed(columns: int, depth: int, kernel: Kernel) -> None:
    packed = pack(torch.zeros(columns, depth, dtype=torch.int8), kernel)
    x = torch.ones(2, depth, dtype=torch.int8)
    assert int8_product(x, packed, columns).tolist() == [[0] * columns] * 2
