"""Which steps there are, by kind, and how a recipe's text becomes steps."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import ValidationError

from compressor.pruning.prune_heads import HEAD_PRUNING
from compressor.pruning.prune_layers import LAYER_PRUNING
from compressor.pruning.prune_units import UNIT_PRUNING
from compressor.pruning.prune_weights import WEIGHT_PRUNING
from compressor.quantization.formats import FORMATS
from compressor.quantization.int8_static import Int8Static
from compressor.sparsity.sparse import SPARSE
from compressor.sparsity.sparse_gpu import SPARSE_GPU
from compressor.step import Step, nearest
from compressor.training.prune_training import PRUNING_TRAINING
from compressor.training.training_steps import TRAINING
from compressor.weights.low_rank import LOW_RANK
from compressor.weights.share import SHARING
from worker.errors import InvalidRequest

FAMILIES: Final[Mapping[str, tuple[type[Step], ...]]] = {
    "quantization": (*FORMATS, Int8Static),
    "pruning": (*UNIT_PRUNING, *HEAD_PRUNING, *LAYER_PRUNING, *WEIGHT_PRUNING, *PRUNING_TRAINING),
    "low_rank": LOW_RANK,
    "sharing": SHARING,
    "sparse": (*SPARSE, *SPARSE_GPU),
    "training": TRAINING,
}
"""A new kind of step is added to its family's tuple, and that is all."""


def _kinds() -> dict[str, type[Step]]:
    found: dict[str, type[Step]] = {}
    for kind in (kind for family in FAMILIES.values() for kind in family):
        annotation = kind.model_fields["kind"].annotation
        names = get_args(annotation) if get_origin(annotation) is Literal else ()
        if not names or not set(found).isdisjoint(names):
            raise TypeError(f"{kind.__name__}: `kind` must be a Literal of names that no other step has")
        found |= dict.fromkeys(names, kind)
    return found


KINDS: Final[Mapping[str, type[Step]]] = _kinds()
"""Every kind of step by its name in recipes."""


def as_made(described: Any) -> Any:
    """A manifest's step with what was done where it does not say: that is not this version's or machine's choice."""
    name = described.get("kind") if isinstance(described, dict) else None
    kind = KINDS.get(name) if isinstance(name, str) else None
    return {**kind.unsaid, **described} if kind else described


def read_steps(described: Sequence[Mapping[str, Any]], *, place: str = "steps") -> tuple[Step, ...]:
    """The steps that a recipe's mappings describe.

    Raises:
        InvalidRequest: a kind or a key is unknown (with the nearest name), or a value is not what the key takes; all of
            them in one message, each with its place ("steps.0.kind").
    """
    if isinstance(described, (str, bytes)) or not isinstance(described, Sequence):
        raise InvalidRequest(f"{place}: expected a list of steps, not a {type(described).__name__}")
    steps: list[Step] = []
    problems: list[str] = []
    for index, item in enumerate(described):
        try:
            steps.append(read_step(item, place=f"{place}.{index}"))
        except InvalidRequest as error:
            problems.append(str(error))
    if problems:
        raise InvalidRequest("; ".join(problems))
    return tuple(steps)


def read_step(described: Mapping[str, Any], *, place: str = "step") -> Step:
    """The step that one mapping describes. See `read_steps`."""
    if not isinstance(described, Mapping):
        raise InvalidRequest(f"{place}: expected a mapping with a kind, such as {{kind: int8_dynamic}}")
    name = described.get("kind")
    if not isinstance(name, str) or name not in KINDS:
        came = "is missing" if "kind" not in described else f"{name!r} is unknown"
        raise InvalidRequest(f"{place}.kind {came}{nearest(str(name), KINDS)}")
    kind = KINDS[name]
    unknown = [
        f"{place}.{key}: {name!r} takes no such key{nearest(str(key), kind.model_fields)}"
        for key in described
        if key not in kind.model_fields
    ]
    if unknown:
        raise InvalidRequest("; ".join(unknown))
    try:
        return kind.model_validate(dict(described))
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join([place, *map(str, item['loc'])])}: {item['msg']}, not {item['input']!r}"[:300]
            for item in error.errors()
        )
        raise InvalidRequest(told) from error


def described(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The steps as a recipe holds them: every key, so that a default that changes later changes no recipe."""
    return [step.model_dump(mode="json") for step in steps]
