"""The rows of `benchmarks.compression.techniques`: which steps are tried on which model.

Every kind of step that there is gets a row, also one that is not named here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from compressor.step import Phase
from compressor.steps import FAMILIES

RESNET, MINILM = "ResNet-20", "MiniLM"


@dataclass(frozen=True, slots=True)
class Row:
    """`steps` as a recipe has them."""

    family: str
    title: str
    model: str
    steps: tuple[Mapping[str, Any], ...]


_TUNE: Final = {"kind": "fine_tune", "rate": 0.01, "bfloat16": True}
_HALF: Final = {"kind": "prune_weights", "sparsity": 0.5}
_TILES: Final = {"kind": "prune_weights", "sparsity": 0.75, "block": [64, 16], "layers": ["encoder"]}

_BOTH: Final[tuple[tuple[str, str, tuple[Mapping[str, Any], ...]], ...]] = (
    ("quantization", "int8 weights", ({"kind": "int8_weight_only"},)),
    ("quantization", "int4 weights, groups of 64", ({"kind": "int4_weight_only"},)),
    ("quantization", "int8 static", ({"kind": "int8_static"},)),
    ("quantization", "int8 dynamic", ({"kind": "int8_dynamic"},)),
    ("quantization", "bf16", ({"kind": "bf16"},)),
    ("quantization", "fp16", ({"kind": "fp16"},)),
    ("quantization", "fp8", ({"kind": "fp8"},)),
    ("quantization", "ternary", ({"kind": "ternary"},)),
    ("quantization", "binary", ({"kind": "binary"},)),
    ("pruning", "L1 magnitude, half", (_HALF,)),
    ("pruning", "L2 magnitude of 4x1 groups, half", ({**_HALF, "score": "l2", "block": [4, 1]},)),
    ("pruning", "random, half", ({**_HALF, "score": "random"},)),
    ("pruning", "2 of 4", ({"kind": "prune_weights", "n_of_m": "2:4"},)),
    ("low rank", "SVD, 90 % of the energy", ({"kind": "low_rank", "energy": 0.9},)),
    ("low rank", "SVD, half of the weights", ({"kind": "low_rank", "budget": 0.5},)),
    ("low rank", "SVD, activation-aware", ({"kind": "low_rank", "energy": 0.9, "aware": True},)),
    ("sharing", "16 values a layer", ({"kind": "share_weights"},)),
    ("sharing", "16 values for every 8 rows", ({"kind": "share_weights", "group_rows": 8},)),
    ("sparse", "half pruned, CSR", (_HALF, {"kind": "sparse"})),
    (
        "sparse",
        "2 of 4, compact",
        ({"kind": "prune_weights", "n_of_m": "2:4"}, {"kind": "sparse", "layout": "n_of_m", "n_of_m": "2:4"}),
    ),
)

_ONE: Final = (
    Row("quantization", "mixed: bf16 and int8 static", RESNET, (
        {"kind": "bf16", "layers": ["conv1", "linear"]}, {"kind": "int8_static", "layers": ["*", "!conv1", "!linear"]},
    )),
    Row("quantization", "mixed: int8 and int4 embedding", MINILM, (
        {"kind": "int8_dynamic"}, {"kind": "int4_weight_only", "layers": ["encoder.embeddings.word_embeddings"]},
    )),
    *(
        Row("pruning", f"a quarter of the channels, {score}", RESNET, (
            {"kind": "prune_channels", "share": 0.25, "score": score}, _TUNE,
        ))
        for score in ("l1", "l2", "random")
    ),
    *(
        Row("pruning", f"a quarter of the neurons, {score}", MINILM, (
            {"kind": "prune_neurons", "share": 0.25, "score": score},
        ))
        for score in ("l1", "l2", "random")
    ),
    *(
        Row("pruning", f"a quarter of the heads, {score}", MINILM, (
            {"kind": "prune_heads", "share": 0.25, "score": score},
        ))
        for score in ("l1", "l2", "random")
    ),
    *(
        Row("pruning", f"one layer of six, {score}", MINILM, ({"kind": "prune_layers", "count": 1, "score": score},))
        for score in ("spread", "l1", "l2", "random")
    ),
    Row("sparse", "tiles pruned, as blocks", RESNET, (
        {**_HALF, "block": [8, 8]}, {"kind": "sparse", "layout": "bsr", "block": [8, 8]},
    )),
    Row("sparse", "tiles pruned, as blocks", MINILM, (
        _TILES, {"kind": "sparse", "layout": "bsr", "block": [64, 16], "layers": ["encoder"]},
    )),
    Row("pruning", "gradually while training, 70 %, CSR", RESNET, (
        {**_TUNE, "kind": "prune_gradually", "sparsity": 0.7}, {"kind": "sparse"},
    )),
    Row("pruning", "weights driven to zero by L1, removed, CSR", RESNET, (
        {**_TUNE, "kind": "train_sparse", "strength": 0.01},
        {"kind": "prune_weights", "below": 0.25},
        {"kind": "sparse", "layers": ["layer*"]},
    )),
    Row("pruning", "channels driven to zero by the norm of each, removed", RESNET, (
        {
            **_TUNE, "kind": "train_sparse", "of": "channels", "penalty": "l2", "strength": 0.02,
            "sparse": ["layer*.conv1"],
        },
        {"kind": "prune_channels", "below": 0.2, "layers": ["layer*.conv1"]},
        _TUNE,
    )),
    Row("distillation", "two blocks gone, fine-tuned", RESNET, ({"kind": "prune_layers", "count": 2}, _TUNE)),
    Row("distillation", "two blocks gone, distilled", RESNET, (
        {"kind": "prune_layers", "count": 2}, {**_TUNE, "kind": "distill"},
    )),
    Row("distillation", "a quarter of the channels, hidden states distilled", RESNET, (
        {"kind": "prune_channels", "share": 0.25},
        {**_TUNE, "kind": "distill", "hidden": {"layer2": "layer2", "layer3": "layer3"}, "hidden_share": 0.1},
    )),
)  # fmt: skip


def rows() -> tuple[Row, ...]:
    """Those that are named here, and one a model for each kind that none of them has; only ResNet-20 is trained."""
    named = (*(Row(family, title, model, steps) for family, title, steps in _BOTH for model in (RESNET, MINILM)), *_ONE)
    covered = {step["kind"] for row in named for step in row.steps}
    others = [
        Row(family.replace("_", " "), name, model, ({"kind": name},))
        for family, kinds in FAMILIES.items()
        for kind in kinds
        if (name := str(kind.model_fields["kind"].default)) not in covered
        for model in ((RESNET,) if kind.phase is Phase.TRAIN else (RESNET, MINILM))
    ]
    return (*named, *others)
