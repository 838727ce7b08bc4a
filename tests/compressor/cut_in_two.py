"""Packages a compressed model uncompiled, cuts it in two, and compares with the whole and with the module itself."""

from dataclasses import replace
from pathlib import Path

import torch

from compressor.capture import Flat
from compressor.model import Model
from compressor.package import package
from compressor.profiling.measure import example_inputs
from worker.artifact import load_artifact
from worker.runtime import Eager
from worker.shard import load_program, load_shard


def assert_two_stages_give_what_the_whole_gives(model: Model, out: Path, *, rows: int = 5) -> None:
    """Bit for bit, with a batch of `rows`, a size that the capture has not seen."""
    artifact = load_artifact(package(replace(model, handler=None), out, stages=(2,), runtime="eager"))
    program = load_program(artifact)
    sizes = dict.fromkeys(program.hints, rows)
    inputs = example_inputs(program, sizes, [item.example for item in model.inputs])
    whole = Eager(program).run(inputs)
    passing: tuple[torch.Tensor, ...] = inputs
    for index in range(2):
        passing = load_shard(artifact, stage=index, stages=2).run(passing)
    assert len(passing) == len(whole)
    for found, expected in zip(passing, whole, strict=True):
        assert torch.equal(found, expected)
    with torch.no_grad():
        for found, expected in zip(whole, Flat(model.module.eval())(*inputs), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
