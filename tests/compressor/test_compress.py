from typing import ClassVar, Literal

import pytest
import torch
from torch import nn

from compressor.compress import compress_, order_problems, problems
from compressor.model import Input
from compressor.quantization.formats import Bf16, Binary, Int4WeightOnly, Int8Dynamic
from compressor.quantization.int8_static import Int8Static
from compressor.step import Change, Context, Phase, Step, patterns_problem, replace_layer_, seeded, selected
from compressor.weights.share import ShareWeights
from worker.errors import InvalidRequest


class Nothing(Step):
    phase: ClassVar[Phase] = Phase.WEIGHTS
    kind: Literal["nothing"] = "nothing"

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        return [Change("0", "said and not done", 1, 1)]


class Train(Nothing):
    phase: ClassVar[Phase] = Phase.TRAIN
    kind: Literal["train"] = "train"  # type: ignore[assignment]


class Remove(Nothing):
    phase: ClassVar[Phase] = Phase.STRUCTURE
    kind: Literal["remove"] = "remove"  # type: ignore[assignment]


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)))


def _context() -> Context:
    return Context(inputs=(Input("x", torch.ones(2, 16), ("batch", None)),))


def test_each_layer_gets_the_format_of_the_step_that_names_it() -> None:
    net = _net()
    found = compress_(
        net, Int8Dynamic(layers=("2.0",)), Bf16(layers=("0",)), Int4WeightOnly(layers=("2", "!2.0")), context=_context()
    )
    assert found.module is net
    assert [(change.layer, change.what) for change in found.changes] == [
        ("2.0", "int8_dynamic"),
        ("0", "bf16"),
        ("2.1", "int4_weight_only"),
    ]
    assert all(change.after < change.before for change in found.changes)
    assert found.after < found.before
    assert net(torch.ones(3, 16)).dtype == torch.float32


def test_every_problem_is_told_before_anything_is_done() -> None:
    net = _net()
    before = [parameter.clone() for parameter in net.parameters()]
    steps = (Int8Static(), ShareWeights(layers=("4",)), Binary(layers=("2.2",)), Int8Dynamic())
    with pytest.raises(InvalidRequest) as raised:
        compress_(net, *steps, context=_context())
    told = str(raised.value)
    assert 'step 2 ("share_weights"): it stands after "int8_static"' in told
    assert 'step 1 ("int8_static"): it looks at activations and there is no calibration data' in told
    assert 'step 3 ("binary"): layers: "2.2" matches nothing; the nearest is "2.1"' in told
    assert 'step 4 ("int8_dynamic"): "int8_static" takes 0 already' in told
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_step_that_changes_nothing_is_an_error() -> None:
    with pytest.raises(InvalidRequest, match=r'step 1 \("nothing"\) changed nothing'):
        compress_(_net(), Nothing(), context=_context())


def test_no_step_at_all_is_an_error() -> None:
    assert problems(_net(), (), _context()) == ["there is no step: name at least one"]


@pytest.mark.parametrize(
    ("steps", "sound"),
    [
        ((Remove(), Nothing(), Train(), Int8Dynamic(), Int8Static()), True),
        ((Remove(), Train(), Remove(), Train(), Nothing(), Train()), True),
        ((Train(), Int8Dynamic()), True),
        ((Nothing(), Train(), Remove()), False),
        ((Int8Dynamic(), Train()), False),
        ((Int8Dynamic(), Nothing()), False),
        ((Int8Static(), Int8Dynamic()), False),
        ((Int8Static(), Int8Static()), False),
    ],
)
def test_steps_stand_in_one_order_and_training_between_those_that_change_weights(
    steps: tuple[Step, ...], sound: bool
) -> None:
    assert (not order_problems(steps)) == sound


def test_what_runs_elsewhere_is_refused() -> None:
    context = Context(inputs=_context().inputs, target="cuda")
    assert problems(_net(), (Int8Static(),), context) == [
        'step 1 ("int8_static"): what it makes runs on cpu, not on cuda'
    ]


@pytest.mark.parametrize(
    ("name", "patterns", "taken"),
    [
        ("encoder.0.up", ("*",), True),
        ("encoder.0.up", ("encoder",), True),
        ("encoder.0.up", ("encoder.*.up",), True),
        ("encoder.0.up", ("up",), False),
        ("encoder.0.up", ("*", "!*.up"), False),
        ("encoder.0.up", ("*", "!encoder"), False),
        ("encoder.0.up", ("!encoder.1",), False),
        ("encoder.10", ("encoder.1",), False),
    ],
)
def test_a_pattern_takes_a_module_and_all_in_it(name: str, patterns: tuple[str, ...], taken: bool) -> None:
    assert selected(name, patterns) == taken


def test_a_pattern_that_matches_nothing_is_told_with_the_nearest_name() -> None:
    assert patterns_problem(_net(), ("2.*", "!2.7")) == 'layers: "!2.7" matches nothing; the nearest is "2.1"'
    assert patterns_problem(_net(), ("*", "2")) is None


def test_a_layer_that_is_used_twice_stays_one() -> None:
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    replace_layer_(net, shared, nn.Linear(4, 4))
    assert net[0] is net[2] is not shared


def test_the_whole_model_cannot_be_replaced() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(InvalidRequest, match=r"put it into an nn\.Sequential"):
        replace_layer_(layer, layer, nn.Linear(4, 4))


def test_random_choices_differ_by_seed_and_by_layer() -> None:
    drawn = [float(torch.rand(1, generator=seeded(*which))) for which in [(0, "a"), (0, "b"), (1, "a"), (0, "a")]]
    assert len(set(drawn)) == 3
    assert drawn[0] == drawn[3]


class _Output(nn.Module):
    """Multiplies with the embedding's weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.up = nn.Embedding(64, 32), nn.Linear(32, 32)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.up(self.token(ids)) @ self.token.weight.t()
        return y


def test_a_model_that_uses_a_weight_itself_is_refused_where_that_is_another_then() -> None:
    context = Context(inputs=(Input("ids", torch.arange(6).reshape(2, 3), ("batch", None)),))
    told = r"_Output does not run after bf16 \(expected m1 and m2 .*: its code does more with a layer than to call it"
    with pytest.raises(InvalidRequest, match=told):
        compress_(_Output(), Bf16(), context=context)
    compress_(_Output(), Bf16(layers=("up",)), context=context)


@pytest.mark.parametrize("step", [ShareWeights(bits=8), Int4WeightOnly()], ids=lambda step: step.kind)
def test_a_model_that_uses_a_weight_itself_gets_it_decoded(step: Step) -> None:
    torch.manual_seed(0)
    module, ids = _Output(), torch.arange(6).reshape(2, 3)
    exact = module(ids)
    compress_(module, step, context=Context(inputs=(Input("ids", ids, ("batch", None)),)))
    torch.testing.assert_close(module(ids), exact, rtol=0.2, atol=2.0)
    assert not torch.equal(module(ids), exact)
