from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor.compress import compress_
from compressor.model import Input, Model
from compressor.pruning.prune_layers import PruneLayers
from compressor.quantization.formats import Int8Dynamic
from compressor.step import Context
from compressor.weights.share import ShareWeights
from tests import models
from tests.compressor.cut_in_two import assert_two_stages_give_what_the_whole_gives
from tests.compressor.pruning.test_prune_heads import bert
from worker.errors import InvalidRequest


class Block(nn.Module):
    def __init__(self, size: float) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.layer.weight.data *= size

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(x))


def stack(sizes: tuple[float, ...] = (1, 1, 0.1, 1, 0.01, 1)) -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Sequential(*map(Block, sizes)), nn.Linear(8, 2))
    return Model(module, (Input("x", torch.randn(4, 4), ("batch", None)),), outputs=("y",))


def removed(step: PruneLayers, seed: int = 0) -> list[str]:
    model = stack()
    context = Context.of(model, calibration=[(torch.randn(16, 4),)], seed=seed)
    done = compress_(model.module, step, context=context)
    assert len(list(model.module.get_submodule("1").children())) == 6 - step.count
    assert done.after < done.before
    return [change.layer for change in done.changes]


@pytest.mark.parametrize("score", ["l1", "l2", "influence"])
def test_the_blocks_that_do_least_go(score: str) -> None:
    assert removed(PruneLayers.model_validate({"count": 2, "score": score})) == ["1.2", "1.4"]


def test_blocks_go_by_place_or_at_random() -> None:
    assert removed(PruneLayers(count=2, score="last")) == ["1.4", "1.5"]
    assert removed(PruneLayers(count=2, score="spread")) == ["1.2", "1.4"]
    assert removed(PruneLayers(count=2, score="last", layers=("1.0", "1.1", "1.2"))) == ["1.1", "1.2"]
    assert len({tuple(removed(PruneLayers(count=3, score="random"), seed)) for seed in range(8)}) > 1


def test_what_is_left_gives_what_passing_on_gave() -> None:
    model, x = stack(), torch.randn(5, 4)
    first, blocks, last = (model.module.get_submodule(name) for name in "012")
    y = first(x)
    for place, block in enumerate(blocks.children()):
        y = y if place == 5 else block(y)
    compress_(model.module, PruneLayers(count=1, score="last"), context=Context.of(model))
    assert torch.equal(model.module(x), last(y))


def test_a_later_step_that_names_all_blocks_takes_those_that_are_left_and_says_which_went() -> None:
    model, said = stack(), list[str]()
    every = Int8Dynamic(layers=tuple(f"1.{place}.layer" for place in range(6)))
    done = compress_(model.module, PruneLayers(count=2), every, context=replace(Context.of(model), say=said.append))
    assert [change.layer for change in done.done[1].changes] == [f"1.{place}.layer" for place in range(4)]
    assert 'step 2 ("int8_dynamic"): 1.4.layer, 1.5.layer went with step 1 ("prune_layers")' in said


@pytest.mark.parametrize("pattern", ["!1.5", "!1.5.*"])
def test_a_later_step_that_names_a_block_by_its_old_number_is_refused_before_more_is_done(pattern: str) -> None:
    model, said = stack(), list[str]()
    steps = (PruneLayers(count=3), ShareWeights(layers=("0",), bits=1), Int8Dynamic(layers=("1", pattern)))
    with pytest.raises(InvalidRequest) as raised:
        compress_(model.module, *steps, context=replace(Context.of(model), say=said.append))
    assert f'step 3 ("int8_dynamic"): layers: "{pattern}" matches nothing; the nearest is "1.' in str(raised.value)
    assert 'so it is after step 1 ("prune_layers"): later steps name the layers that are left' in str(raised.value)
    assert said == ["trying the steps on a copy, without training"]


def test_a_later_step_names_the_blocks_by_their_new_numbers() -> None:
    model = stack()
    last = model.module.get_submodule("1.5.layer")
    steps = (PruneLayers(count=3, layers=("1.0", "1.1", "1.2")), Int8Dynamic(layers=("1", "!1.2")))
    done = compress_(model.module, *steps, context=Context.of(model))
    assert [change.layer for change in done.done[1].changes] == ["1.0.layer", "1.1.layer"]
    assert model.module.get_submodule("1.2.layer") is last


def test_layers_of_a_bert_go() -> None:
    model = bert(layers=4)
    done = compress_(model.module, PruneLayers(count=2), context=Context.of(model))
    assert [change.layer for change in done.changes] == ["encoder.encoder.layer.1", "encoder.encoder.layer.2"]
    ids = torch.randint(1, 40, (2, 5))
    assert model.module(ids, torch.ones_like(ids)).shape == (2, 32)


def test_only_blocks_that_keep_the_shape_go() -> None:
    model = Model(
        models.CifarResNet(2), (Input("image", torch.randn(2, 3, 32, 32), ("batch", None, None, None)),), ("logits",)
    )
    done = compress_(model.module, PruneLayers(count=2, score="last"), context=Context.of(model))
    assert [change.layer for change in done.changes] == ["layer2.1", "layer3.1"], "not those that halve the image"
    named = compress_(
        models.CifarResNet(2), PruneLayers(count=2, layers=("layer2.1", "layer3.1")), context=Context.of(model)
    )
    assert [change.layer for change in named.changes] == ["layer2.1", "layer3.1"], "all that are named may go"
    again = models.CifarResNet(2)
    with pytest.raises(InvalidRequest, match=r"only layer2\.1, layer3\.1 can go .*; asked for 3"):
        compress_(again, PruneLayers(count=3, layers=("layer2", "layer3")), context=Context.of(model))


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (PruneLayers(count=6), "6 blocks in stacks of layers of one class are there, of which 6 cannot go"),
        (PruneLayers(count=1, layers=("0",)), "0 blocks"),
        (PruneLayers(count=1, score="influence"), "there is no calibration data"),
    ],
)
def test_what_cannot_go_is_refused_before_anything_is_done(step: PruneLayers, reason: str) -> None:
    model = stack()
    with pytest.raises(InvalidRequest, match=reason):
        compress_(model.module, step, context=Context.of(model))


def test_a_shorter_model_is_captured_and_cut_exactly(tmp_path: Path) -> None:
    model = stack()
    compress_(model.module, PruneLayers(count=2), context=Context.of(model))
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "b")
