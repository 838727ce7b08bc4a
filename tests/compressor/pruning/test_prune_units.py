import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from compressor.compress import compress_
from compressor.model import Input, Model
from compressor.pruning.coupling import coupled
from compressor.pruning.prune_units import PruneChannels, PruneNeurons, PruneUnits, places, removable
from compressor.pruning.removal import mask_inputs_
from compressor.step import Context
from tests import models
from tests.compressor.cut_in_two import assert_two_stages_give_what_the_whole_gives
from worker.errors import InvalidRequest


class Mixed(nn.Module):
    """A depthwise convolution, a flattened image into a linear layer, and a gated block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.each = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24 * 4, 32)
        self.gate, self.up, self.down = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 5)
        for buffer in (self.norm.running_mean, self.norm.running_var):
            assert buffer is not None
            buffer.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.each(self.norm(self.stem(x))))
        x = nn.functional.max_pool2d(nn.functional.silu(self.point(x)), 2)
        y = self.head(x.flatten(1))
        result: Tensor = self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return result


def mixed() -> Model:
    return Model(Mixed(), (Input("image", torch.randn(2, 3, 4, 4), ("batch", None, None, None)),))


def small_resnet() -> Model:
    torch.manual_seed(0)
    net = models.CifarResNet(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
    return Model(net, (Input("image", torch.randn(2, 3, 32, 32), ("batch", None, None, None)),), outputs=("logits",))


def masked_and_removed(model: Model, step: PruneUnits, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the model gives when the units that go are only masked, and when they are gone."""
    whole = copy.deepcopy(model.module).eval()
    context = Context.of(model)
    groups = step.groups(whole, context)
    mask_inputs_(whole, places(groups, step.worst(whole, groups, 0)))
    compress_(model.module, step, context=context)
    found = model.module(x)
    assert sum(weight.numel() for weight in model.module.parameters()) < sum(map(Tensor.numel, whole.parameters()))
    return whole(x), found


def test_channels_are_coupled_through_norms_depthwise_convolutions_and_flattening() -> None:
    model = mixed()
    found = {group.makers: group for group in coupled(model.module, [model.inputs[0].example])}
    stem = found["stem.weight",]
    assert stem.units == 16
    assert {place.tensor for place in stem.indices} == {
        "stem.weight", "stem.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "each.weight",
        "each.bias", "point.weight",
    }  # fmt: skip
    point = found["point.weight",]
    assert point.indices[next(place for place in point.indices if place.tensor == "head.weight")].shape == (24, 4)
    assert found["head.weight",].units == 32
    assert found["gate.weight", "up.weight"].takers == ("down.weight",)
    assert not any("down.weight" in makers for makers in found), "what reaches an output stays"


@pytest.mark.parametrize("score", ["l1", "l2"])
def test_removed_channels_give_what_masked_ones_give(score: str) -> None:
    step = PruneChannels.model_validate({"share": 0.5, "score": score})
    masked, removed = masked_and_removed(mixed(), step, torch.randn(7, 3, 4, 4))
    torch.testing.assert_close(removed, masked, rtol=1e-4, atol=1e-5)


def test_removed_neurons_give_what_masked_ones_give() -> None:
    masked, removed = masked_and_removed(mixed(), PruneNeurons(share=0.4), torch.randn(7, 3, 4, 4))
    torch.testing.assert_close(removed, masked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [("*",), ("layer*.*.conv1",)])
def test_a_residual_stream_shrinks_through_shortcuts_that_pad(layers: tuple[str, ...]) -> None:
    model = small_resnet()
    masked, removed = masked_and_removed(model, PruneChannels(share=0.5, layers=layers), torch.randn(3, 3, 32, 32))
    torch.testing.assert_close(removed, masked, rtol=1e-3, atol=1e-4)
    stream = model.module.get_parameter("conv1.weight").shape[0]
    assert stream == (8 if layers == ("*",) else 16)
    assert model.module.get_parameter("layer3.0.conv1.weight").shape[0] == 32


def test_layers_know_their_new_sizes() -> None:
    model = mixed()
    done = compress_(model.module, PruneChannels(share=0.5), PruneNeurons(share=0.5), context=Context.of(model))
    module = model.module
    assert isinstance(module, Mixed)
    assert (module.stem.out_channels, module.norm.num_features) == (8, 8)
    assert (module.each.groups, module.each.in_channels, module.each.out_channels) == (8, 8, 8)
    assert (module.point.in_channels, module.point.out_channels) == (8, 16)
    assert module.head.in_features == 16 * 4
    assert (module.up.out_features, module.gate.out_features, module.down.in_features) == (32, 32, 32)
    assert done.after < done.before
    assert [change.what for change in done.done[0].changes if "stay" in change.what] == [
        "8 of 16 units stay",
        "16 of 24 units stay",
    ]
    assert sum(change.after - change.before for change in done.changes) == done.after - done.before


def test_the_worst_go_and_random_ones_are_the_seeds() -> None:
    def left(step: PruneUnits, seed: int = 0) -> Tensor:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
        assert isinstance(module[0], nn.Linear)
        module[0].weight.data[5:21] *= 1e-3
        module[0].weight.data[:, 0] = torch.arange(32)
        model = Model(module, (Input("x", torch.randn(2, 4), ("batch", None)),))
        compress_(module, step, context=Context.of(model, seed=seed))
        assert isinstance(module[0].weight, Tensor)
        return module[0].weight[:, 0].long()

    both = [*range(5), *range(21, 32)]
    module = left(PruneNeurons(share=0.5, multiple=16))
    assert set(module.tolist()) >= set(both[5:])
    assert torch.equal(
        left(PruneNeurons(share=0.5, score="random"), 1), left(PruneNeurons(share=0.5, score="random"), 1)
    )
    assert not torch.equal(
        left(PruneNeurons(share=0.5, score="random"), 1), left(PruneNeurons(share=0.5, score="random"), 2)
    )


def test_units_driven_to_zero_go_and_nothing_is_lost() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name == "2.weight":
                parameter[:, 3:20] = 0
            elif name != "2.bias":
                parameter[3:20] = 0
    x = torch.randn(5, 4)
    expected = module(x)
    model = Model(module, (Input("x", torch.randn(2, 4), ("batch", None)),))
    done = compress_(module, PruneNeurons(below=0.05, multiple=1), context=Context.of(model))
    assert done.changes[0].what == "15 of 32 units stay"
    torch.testing.assert_close(module(x), expected)


@given(units=st.integers(1, 200), share=st.floats(0, 1), multiple=st.integers(1, 32))
def test_what_stays_is_a_multiple_and_never_less_than_asked_for(units: int, share: float, multiple: int) -> None:
    wanted = round(share * units)
    gone = removable(units, wanted, multiple)
    assert 0 <= gone <= wanted
    assert gone == 0 or (units - gone) % multiple == 0
    assert units - gone > 0


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(96, 192), nn.Linear(192, 96), nn.LayerNorm(96)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x + self.down(torch.relu(self.up(x))))
        return y


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_models_in_other_floats_lose_units_too(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(*(_Residual() for _ in range(12))).to(dtype)  # twelve, in which roundings add up
    x = torch.randn(7, 96).to(dtype)
    done = compress_(module, PruneNeurons(share=0.3, layers=("*.up",)), context=Context(inputs=(Input("x", x, ()),)))
    assert sum(change.what.endswith("units stay") for change in done.changes) == 12
    assert {tensor.dtype for tensor in module.state_dict().values()} == {dtype} == {module(x).dtype}


class _Mean(nn.Module):
    """Divides by a number of units that it counted when it was made."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(4, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu(self.up(x)))
        return y * (self.up.weight.shape[0] / 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_what_is_not_rounding_is_found_in_every_float(dtype: torch.dtype) -> None:
    module, x = _Mean().to(dtype), torch.randn(5, 4).to(dtype)
    with pytest.raises(InvalidRequest, match="gives something else without what was removed"):
        compress_(module, PruneNeurons(share=0.05, multiple=1), context=Context(inputs=(Input("x", x, ()),)))


def test_a_module_whose_code_counts_on_its_sizes_is_refused() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.down(self.up(x).reshape(-1, 32))
            return y

    model = Model(Counts(), (Input("x", torch.randn(2, 4), ("batch", None)),))
    with pytest.raises(InvalidRequest, match="counts on its sizes"):
        compress_(model.module, PruneNeurons(share=0.5), context=Context.of(model))


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (PruneNeurons(share=0.5, multiple=64), "no layer has more than 64 units"),
        (PruneNeurons(share=0.1), "nothing goes: up has 64"),
        (PruneNeurons(share=0.5, layers=("qkv", "out"), multiple=8), "no layer's units can be removed"),
        (PruneChannels(share=0.5), "no Conv2d"),
    ],
)
def test_what_gains_nothing_is_refused(step: PruneUnits, reason: str) -> None:
    model = models.attention()
    with pytest.raises(InvalidRequest, match=reason):
        compress_(model.module, step, context=Context.of(model))


def test_share_and_below_together_are_refused() -> None:
    for keys in ({}, {"share": 0.5, "below": 0.1}, {"below": 0.1, "score": "random"}):
        with pytest.raises(ValidationError, match=r"share|below"):
            PruneChannels.model_validate(keys)


def test_a_narrower_model_is_captured_and_cut_exactly(tmp_path: Path) -> None:
    model = mixed()
    compress_(model.module, PruneChannels(share=0.5), PruneNeurons(share=0.5), context=Context.of(model))
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "m")
