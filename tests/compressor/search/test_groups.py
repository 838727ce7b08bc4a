import pytest
import torch
from torch import nn

from compressor.search.groups import find_groups
from compressor.search.treatments import merged, read_treatments, treatment
from compressor.step import Context
from compressor.steps import read_steps
from tests.compressor.search.tiny import small_classifier
from worker.errors import InvalidRequest

INT8 = treatment({"kind": "int8_dynamic"})
PRUNED = treatment({"kind": "prune_neurons", "share": 0.5}, {"kind": "int8_dynamic"})


def test_layers_that_take_each_step_alone_are_groups_of_their_own() -> None:
    model = small_classifier()
    groups = find_groups(model.module, (INT8,), Context.of(model), most=48)
    assert [group.layers for group in groups] == [
        ("layers.0.0",),
        ("layers.0.2",),
        ("layers.1.0",),
        ("layers.1.2",),
        ("head",),
    ]


def test_layers_that_a_step_changes_together_are_one_group_and_the_model_stays_as_it_was() -> None:
    model = small_classifier()
    before = {name: weight.clone() for name, weight in model.module.state_dict().items()}
    groups = find_groups(model.module, (INT8, PRUNED), Context.of(model), most=48)
    assert [group.name for group in groups] == ["layers.0.{0, 2}", "layers.1.{0, 2}", "head"]
    assert [candidate.treatment for candidate in groups[1].candidates] == [INT8.name, PRUNED.name]
    assert groups[1].candidates[1].steps[0].layers == ("layers.1",)
    assert [candidate.treatment for candidate in groups[2].candidates] == [INT8.name]
    assert all(torch.equal(before[name], weight) for name, weight in model.module.state_dict().items())


def test_with_too_many_groups_blocks_are_decided_as_wholes() -> None:
    model = small_classifier()
    groups = find_groups(model.module, (INT8,), Context.of(model), most=3)
    assert [len(group.layers) for group in groups] == [2, 2, 1]


def test_a_model_that_no_treatment_can_change_has_no_groups() -> None:
    assert find_groups(nn.Sequential(nn.ReLU()), (INT8,), Context(inputs=()), most=48) == ()


def test_steps_of_several_groups_become_one_recipe_in_the_order_of_phases() -> None:
    steps = read_steps(
        [
            {"kind": "int8_dynamic", "layers": ["a"]},
            {"kind": "prune_neurons", "share": 0.5, "layers": ["b"]},
            {"kind": "int8_dynamic", "layers": ["b"]},
            {"kind": "prune_neurons", "share": 0.25, "layers": ["c"]},
            {"kind": "int8_dynamic", "layers": ["a"]},
        ]
    )
    assert [(step.kind, step.layers) for step in merged(steps)] == [
        ("prune_neurons", ("b",)),
        ("prune_neurons", ("c",)),
        ("int8_dynamic", ("a", "b")),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- {kind: int8_dynamc}", 'the nearest is "int8_dynamic"'),
        ("- {kind: int8_dynamic, layers: [a]}", "names layers"),
        ("- {kind: prune_neurons, shar: 0.5}", 'the nearest is "share"'),
        ("{}", "expected a list of 1 to"),
        ("[", "cannot be read"),
    ],
)
def test_treatments_that_are_none_are_refused_with_their_place(tmp_path, text: str, told: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "treatments.yaml"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=told):
        read_treatments(path)
