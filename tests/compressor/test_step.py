from pathlib import Path

import pytest
import torch

from compressor.compress import compress_
from compressor.profiling.measure import cosine
from compressor.step import Context
from compressor.steps import read_step
from tests import models
from tests.compressor.cut_in_two import assert_two_stages_give_what_the_whole_gives

ENCODER_STEPS = [
    {"kind": "int8_dynamic"},
    {"kind": "int8_weight_only"},
    {"kind": "share_weights"},
    {"kind": "low_rank", "rank": 16},
]


def _name(step: dict[str, object]) -> str:
    return "-".join(map(str, step.values()))


@pytest.mark.parametrize(
    "step",
    [
        *ENCODER_STEPS,
        {"kind": "int8_static"},
        {"kind": "bf16"},
        {"kind": "share_weights", "layers": ["encoder.layers.1.linear2"]},
        {"kind": "low_rank", "rank": 16, "aware": True},
    ],
    ids=_name,
)
def test_layers_within_pytorchs_own_encoder_are_called_and_not_passed_over(step: dict[str, object]) -> None:
    model = models.encoder()
    inputs = tuple(item.example for item in model.inputs)
    with torch.no_grad():
        exact = model.module(*inputs)
        done = compress_(model.module, read_step(step), context=Context.of(model, calibration=[inputs]))
        assert cosine(model.module(*inputs), exact) > 0.95
    assert done.after < done.before
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("step", ENCODER_STEPS, ids=_name)
def test_a_compressed_encoder_of_pytorchs_own_is_captured_and_cut_exactly(
    step: dict[str, object], tmp_path: Path
) -> None:
    model = models.encoder()
    compress_(model.module, read_step(step), context=Context.of(model))
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "model")
