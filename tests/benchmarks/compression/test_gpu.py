"""The script that measures GPUs, on the CPU: tiny shapes, uncompiled, and what it says where there is no GPU."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.compression.gpu import BASE, WAYS, Bench, Figures, compiled, summary, table
from benchmarks.compression.llama import LLAMA_3_8B, TINY, shapes
from compressor.packaging.compile import compiler_problem

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def block() -> dict[str, Figures]:
    bench = Bench("cpu", rows=(1, 16, 1024), rounds=2)
    return bench.figures(shapes(TINY)["block"], WAYS)


def test_the_shapes_are_those_of_the_model() -> None:
    assert list(shapes(LLAMA_3_8B)) == [
        *("qkv 4096x6144", "o 4096x4096", "gate_up 4096x28672", "down 14336x4096"),
        "block",
    ]
    x = shapes(LLAMA_3_8B)["block"].inputs(4096)
    assert x.shape == (8, 512, 4096)


def test_a_shape_has_the_same_weights_each_time_in_every_format() -> None:
    shape = shapes(TINY)["qkv 64x128"]
    wide, short = (shape.model(dtype).module.state_dict()["0.weight"] for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(wide.to(torch.bfloat16), short)


@pytest.mark.slow
def test_what_the_cpu_can_do_is_measured_at_all_rows_and_near_to_fp32(block: dict[str, Figures]) -> None:
    stored = {name: figures["stored"] for name, figures in block.items() if "refused" not in figures}
    assert set(stored) == {BASE, "bf16", "bf16_model", "int8_dynamic", "int8_weight_only", "int4_weight_only"}
    assert stored["int4_weight_only"] < 0.35 < stored["int8_dynamic"] < 0.6 < stored["bf16"] <= 1.02
    for name in stored:
        for count in ("1", "16", "1024"):
            told = block[name]["rows"][count]
            assert told["cosine"] > (0.98 if name.startswith("int4") else 0.999), (name, count)
            assert told["ms"] > 0
            assert told["ratio"] > 0
    assert block[BASE]["rows"]["1"]["ratio"] == 1


@pytest.mark.slow
def test_what_the_device_cannot_do_is_named_with_the_reason(block: dict[str, Figures]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device, and the reasons are others")
    assert "fp8 is computed on CUDA devices, and there is none here" in block["fp8"]["refused"]
    assert "what it makes runs on cuda, not on cpu" in block["sparse_2_4"]["refused"]
    out = io.StringIO()
    Console(file=out, width=300).print(table("block", block, (1, 16, 1024), "cpu"))
    for line in out.getvalue().splitlines():
        if "fp8" in line or "sparse_2_4" in line:
            assert "refused: " in line


@pytest.mark.slow
def test_packages_are_compiled_side_by_side_and_what_cannot_be_made_is_told(tmp_path: Path) -> None:
    if compiler_problem():
        pytest.skip(compiler_problem())
    ways = [way for way in WAYS if way.name in {"bf16_model", "sparse_2_4"}]
    made = compiled(["o 64x64"], ways, "cpu", tmp_path, tiny=True, workers=2)
    assert made["o 64x64", "sparse_2_4"].package is None
    found = Bench("cpu", rows=(2,), rounds=1).figures(
        shapes(TINY)["o 64x64"], ways, {way.name: made["o 64x64", way.name] for way in ways}
    )
    assert found["bf16_model"]["rows"]["2"]["cosine"] > 0.999
    assert "what it makes runs on cuda, not on cpu" in found["sparse_2_4"]["refused"]


def test_a_ratio_is_of_medians_to_the_baseline() -> None:
    found = summary({BASE: [0.004, 0.002, 0.1], "fp8": [0.001, 0.002, 0.001]})
    assert found[BASE] == {"ms": pytest.approx(4.0), "ratio": 1.0}
    assert found["fp8"] == {"ms": pytest.approx(1.0), "ratio": pytest.approx(4.0)}


def test_a_result_far_from_fp32_is_refused_as_wrong() -> None:
    class Wrong(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x) if x.dtype == torch.bfloat16 else x + 1

    shape = shapes(TINY)["o 64x64"]
    other = type(shape)(Wrong, shape.inputs, shape.axes)
    found = Bench("cpu", rows=(2,), rounds=1).figures(other, ())
    assert found[BASE]["rows"]["2"] == {"refused": "wrong: it is 1 from fp32"}


def test_without_a_gpu_it_says_so_and_ends_well() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compression.gpu", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "device": None,
        "refused": "device 'cuda:0': this machine has 0 CUDA devices; use cpu, or a machine that has it",
    }
