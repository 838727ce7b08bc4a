from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor.capture import capture
from compressor.compress import compress_
from compressor.profiling.measure import cosine
from compressor.pruning.prune_weights import PruneWeights
from compressor.step import Context, Step, stored_bytes
from compressor.steps import read_step
from compressor.training.training_data import Rows
from compressor.weights.stored import Stored
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


def test_a_tied_weight_stays_one_in_another_format_and_half_the_bytes_are_saved() -> None:
    model = models.language_model()
    place = 16 * 32 * 4  # a parameter of the model itself, which stays
    before = stored_bytes(model.module) - place
    done = compress_(model.module, read_step({"kind": "bf16"}), context=Context.of(model))
    assert stored_bytes(model.module) - place == before / 2
    assert [(change.layer, change.before, change.after) for change in done.changes if "that of" in change.what] == [
        ("head", 0, 0)
    ]
    token, head = (model.module.get_submodule(name).weight for name in ("token", "head"))
    assert token is head


@pytest.mark.parametrize(
    "step",
    [
        {"kind": "bf16"},
        {"kind": "bf16", "layers": ["head"]},
        {"kind": "int8_dynamic"},
        {"kind": "int8_weight_only"},
        {"kind": "share_weights"},
        {"kind": "share_weights", "layers": ["head", "up"]},
        {"kind": "low_rank", "rank": 4},
        {"kind": "sparse"},
        {"kind": "int8_static"},
    ],
    ids=_name,
)
def test_what_is_told_of_the_layers_is_what_the_model_takes_also_where_weights_are_tied(
    step: dict[str, object],
) -> None:
    model = models.language_model()
    context = Context.of(model, calibration=[(model.inputs[0].example,)])
    if step["kind"] == "sparse":
        compress_(model.module, PruneWeights(sparsity=0.8), context=context)
    done = compress_(model.module, read_step(step), context=context)
    assert sum(change.after - change.before for change in done.changes) == done.after - done.before


class _Twins(nn.Module):
    """Two layers with one weight and biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


@pytest.mark.parametrize(
    ("steps", "most"),
    [
        ([{"kind": "int8_dynamic"}], 0.3),
        ([{"kind": "int8_static"}], 0.35),
        ([{"kind": "int4_weight_only"}], 0.2),
        ([{"kind": "bf16"}], 0.51),
        ([{"kind": "share_weights"}], 0.2),
        ([{"kind": "low_rank", "rank": 8}], 0.3),
        ([{"kind": "prune_weights", "sparsity": 0.8}, {"kind": "sparse"}], 0.4),
        (
            [
                {"kind": "prune_weights", "sparsity": 0.75, "block": [16, 16], "among": "row"},
                {"kind": "sparse", "layout": "bsr", "block": [16, 16], "run": "blocks"},
            ],
            0.3,
        ),
    ],
    ids=lambda value: str(value[-1]["kind"]) if isinstance(value, list) else "",
)
def test_two_layers_with_one_weight_have_one_after_every_step(steps: list[dict[str, object]], most: float) -> None:
    module, x = _Twins(), torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    alone = _Twins()
    alone.second.weight = nn.Parameter(alone.first.weight.detach().clone())
    made: list[Step] = [read_step(step) for step in steps]
    context = Context(inputs=(), calibration=[(x,)])
    done = compress_(module, *made, context=context)
    assert done.after < most * done.before
    compress_(alone, *made, context=context)
    with torch.no_grad():
        torch.testing.assert_close(module(x), alone(x))


def test_a_codebook_of_two_layers_is_trained_as_one() -> None:
    model = models.language_model()
    ids = torch.randint(0, 96, (8, 7), generator=torch.Generator().manual_seed(1))
    context = Context.of(model, training=_NextToken((ids,), ids, rows=4))
    compress_(model.module, read_step({"kind": "share_weights"}), context=context)
    token, head = model.module.get_submodule("token"), model.module.get_submodule("head")
    assert isinstance(token, Stored)
    assert isinstance(head, Stored)
    before = token.weight.detach()
    compress_(model.module, read_step({"kind": "fine_tune", "rate": 0.1}), context=context)
    assert not torch.equal(token.weight, before)
    assert torch.equal(token.weight, head.weight)
    assert sum(name.endswith("codebook") for name, _ in model.module.named_parameters()) == 5


class _NextToken(Rows):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def test_a_tied_model_is_captured_with_one_weight_and_cut_exactly(tmp_path: Path) -> None:
    model = models.language_model()
    compress_(model.module, read_step({"kind": "share_weights"}), context=Context.of(model))
    program = capture(model, tmp_path / "program.pt2")
    held = {weight.data_ptr(): weight.nbytes for weight in program.weights.values()}
    assert sum(held.values()) == stored_bytes(model.module)
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "model")
