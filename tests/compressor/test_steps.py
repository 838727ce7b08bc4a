import re
from typing import Any

import pytest

from compressor.steps import KINDS, described, read_steps
from tests.docs_tables import said
from worker.errors import InvalidRequest

NEEDED: dict[str, dict[str, Any]] = {
    "prune_channels": {"share": 0.25},
    "prune_neurons": {"share": 0.25},
    "prune_heads": {"share": 0.25},
    "prune_layers": {"count": 1},
    "prune_weights": {"sparsity": 0.5},
    "prune_gradually": {"sparsity": 0.5},
    "low_rank": {"energy": 0.9},
}
"""Of kinds that cannot do without."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_back_as_it_was(kind: str) -> None:
    steps = read_steps([{"kind": kind, "layers": ["a.*", "!a.b"], **NEEDED.get(kind, {})}])
    assert type(steps[0]) is KINDS[kind]
    assert read_steps(described(steps)) == steps


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_what_it_does_its_source_what_it_saves_and_where_it_runs(kind: str) -> None:
    text = KINDS[kind].__dict__["__doc__"] or ""
    assert len(text.partition("Source:")[0].strip()) > 20
    assert re.search(r"\d{4}|section", said(KINDS[kind], "Source")), "no paper, and no place in one"
    saves = said(KINDS[kind], "Saves")
    assert all(thing in saves for thing in ("storage", "resident memory", "time")), saves
    assert re.match("any|CPU|CUDA", said(KINDS[kind], "Device"))


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ([{"kind": "int8_dinamic"}], """steps.0.kind 'int8_dinamic' is unknown; the nearest is "int8_dynamic\""""),
        ([{"layers": ["a"]}], "steps.0.kind is missing"),
        ([{"kind": ["bf16"]}], "steps.0.kind ['bf16'] is unknown"),
        (["bf16"], "steps.0: expected a mapping with a kind"),
        ([{"kind": "bf16", "layer": ["a"]}], """steps.0.layer: 'bf16' takes no such key; the nearest is "layers\""""),
        ([{"kind": "bf16", "layers": "a"}], "steps.0.layers: Input should be a valid tuple, not 'a'"),
        (
            [{"kind": "bf16"}, {"kind": "binary", "group": 3}],
            "steps.1.group: Input should be greater than or equal to 8",
        ),
        ("bf16", "steps: expected a list of steps, not a str"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(written: Any, told: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read_steps(written)
    assert told in str(raised.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidRequest) as raised:
        read_steps([{"kind": "bf17"}, {"kind": "bf16"}, {"kind": "bf16", "seed": 1}])
    assert "steps.0.kind" in str(raised.value)
    assert "steps.2.seed" in str(raised.value)
