from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.compress import compress_
from compressor.model import Input, Model
from compressor.pruning.prune_heads import PruneHeads, attentions
from compressor.pruning.removal import mask_inputs_
from compressor.step import Context
from tests import models
from tests.compressor.cut_in_two import assert_two_stages_give_what_the_whole_gives
from worker.errors import InvalidRequest
from worker.nouns import Axis


class Grouped(nn.Module):
    """Causal attention in which two query heads share a key head."""

    def __init__(self, heads: int = 8, key_heads: int = 4, width: int = 4) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = heads, key_heads, width
        self.q_proj = nn.Linear(32, heads * width, bias=False)
        self.k_proj = nn.Linear(32, key_heads * width, bias=False)
        self.v_proj = nn.Linear(32, key_heads * width, bias=False)
        self.o_proj = nn.Linear(heads * width, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        shared = self.num_heads // self.num_kv_heads
        k, v = (tensor.repeat_interleave(shared, 2).transpose(1, 2) for tensor in (k, v))
        y = nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True)
        result: Tensor = x + self.o_proj(y.transpose(1, 2).reshape(*x.shape[:2], self.num_heads * self.head_dim))
        return result


def decoder() -> Model:
    torch.manual_seed(0)
    return Model(
        nn.Sequential(Grouped(), Grouped()),
        (Input("x", torch.randn(2, 3, 32), ("batch", "length", None)),),
        axes=(Axis("batch", 1, 64), Axis("length", 1, 64)),
    )


def bert(layers: int = 2) -> Model:
    """A BERT of transformers' own code with random weights, small."""
    transformers = pytest.importorskip("transformers")
    from compressor.sources.huggingface import Pooled

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64,
    )  # fmt: skip
    encoder: Any = transformers.BertModel(config, add_pooling_layer=False)
    ids = torch.randint(1, 40, (3, 7))
    return Model(
        Pooled(encoder, mean=True, normalize=False).eval(),
        (
            Input("input_ids", ids, ("batch", "sequence"), pad=0),
            Input("attention_mask", torch.ones_like(ids), ("batch", "sequence"), pad=0),
        ),
        axes=(Axis("batch", 1, 64), Axis("sequence", 1, 64)),
    )


def expected_with_heads_masked(model: Model, step: PruneHeads, inputs: tuple[Tensor, ...]) -> Tensor:
    """What the model gives when the worst heads' columns of the output projection are zero."""
    import copy

    whole = copy.deepcopy(model.module)
    for one in attentions(whole):
        score = step._scores(whole, one, 0)
        gone = score.argsort(stable=True)[: round(step.share * one.groups)]
        mask_inputs_(whole, {place: index for place, index in one.places(gone).items() if place.dim == 1})
    with torch.no_grad():
        result: Tensor = whole(*inputs)
        return result


@pytest.mark.parametrize("score", ["l1", "l2", "random"])
def test_key_heads_go_with_the_queries_that_share_them(score: str) -> None:
    model, x = decoder(), torch.randn(5, 9, 32)
    step = PruneHeads.model_validate({"share": 0.5, "score": score})
    expected = expected_with_heads_masked(model, step, (x,))
    done = compress_(model.module, step, context=Context.of(model))
    assert [change.what for change in done.changes] == ["4 of 8 heads stay"] * 2
    assert done.after == done.before // 2
    first = model.module.get_submodule("0")
    assert isinstance(first, Grouped)
    assert (first.num_heads, first.num_kv_heads, first.k_proj.out_features, first.o_proj.in_features) == (4, 2, 8, 16)
    torch.testing.assert_close(model.module(x), expected)


def test_heads_of_a_bert_go() -> None:
    model = bert()
    ids = torch.randint(1, 40, (4, 11))
    mask = torch.ones_like(ids)
    mask[1:, 8:] = 0
    step = PruneHeads(share=0.5)
    expected = expected_with_heads_masked(model, step, (ids, mask))
    done = compress_(model.module, step, context=Context.of(model))
    assert [change.what for change in done.changes] == ["2 of 4 heads stay"] * 2 + ["lost what it took of these"] * 2
    assert done.changes[2].layer.endswith("attention.output.dense")
    assert sum(change.after - change.before for change in done.changes) == done.after - done.before
    with torch.no_grad():
        torch.testing.assert_close(model.module(ids, mask), expected, rtol=1e-4, atol=1e-5)


def test_layers_may_lose_different_numbers_of_heads() -> None:
    model = decoder()
    first = model.module.get_submodule("0")
    assert isinstance(first, Grouped)
    with torch.no_grad():
        for weight in (first.q_proj.weight, first.k_proj.weight, first.v_proj.weight):
            weight[: weight.shape[0] // 4 * 3] *= 1e-3
    done = compress_(model.module, PruneHeads(share=0.375, among="all"), context=Context.of(model))
    assert [(change.layer, change.what) for change in done.changes] == [("0", "2 of 8 heads stay")]
    assert model.module(torch.randn(2, 3, 32)).shape == (2, 3, 32)


def test_what_stays_is_a_multiple() -> None:
    model = decoder()
    with pytest.raises(InvalidRequest, match="no head goes: 0 has 4, 1 has 4, and multiples of 3"):
        compress_(model.module, PruneHeads(share=0.1, multiple=3), context=Context.of(model))
    done = compress_(model.module, PruneHeads(share=0.5, multiple=3), context=Context.of(model))
    assert done.changes[0].what == "6 of 8 heads stay"


def test_a_model_without_attention_that_can_be_recognised_is_refused() -> None:
    model = models.attention()
    with pytest.raises(InvalidRequest, match="no attention found there; looked for modules with linear layers named"):
        compress_(model.module, PruneHeads(share=0.5), context=Context.of(model))


def test_attention_that_is_gone_when_its_turn_comes_is_refused() -> None:
    model = models.attention()
    with pytest.raises(InvalidRequest, match="no attention found there"):
        PruneHeads(share=0.5).apply_(model.module, Context.of(model))


def test_a_decoder_with_fewer_heads_is_captured_and_cut_exactly(tmp_path: Path) -> None:
    model = decoder()
    compress_(model.module, PruneHeads(share=0.5), context=Context.of(model))
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "b")
