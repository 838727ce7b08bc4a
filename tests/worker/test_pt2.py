"""Program files that would do harm: each is refused, and nothing in it has run."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._export.serde import serialize

from compressor.capture import capture
from tests import models
from worker.archive import ProgramError
from worker.pt2 import DTYPES, LAYOUTS, MEMORY_FORMATS, read_program
from worker.runtime import Eager

GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Touches:
    """Unpickling one makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_types_and_layouts_are_numbered_as_pytorch_numbers_them() -> None:
    assert serialize._SERIALIZE_TO_TORCH_DTYPE == DTYPES
    assert serialize._SERIALIZE_TO_TORCH_LAYOUT == LAYOUTS
    assert serialize._SERIALIZE_TO_TORCH_MEMORY_FORMAT == MEMORY_FORMATS


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "program.pt2"
    capture(models.attention(), path)
    return path


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that a hostile program would make."""
    return tmp_path / "it-ran"


def entries_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def written(path: Path, entries: Mapping[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(f"program/{name}", content)
    return path


def changed(sound: Path, target: Path, entry: str, change: Callable[[Any], None], **more: bytes) -> Path:
    """A copy whose JSON `entry` was changed, and with `more` entries ("/" is written "__")."""
    entries = entries_of(sound)
    document = json.loads(entries[entry])
    change(document)
    entries[entry] = json.dumps(document).encode()
    entries.update({name.replace("__", "/"): content for name, content in more.items()})
    return written(target / "hostile.pt2", entries)


def with_target(sound: Path, target: Path, operator: str) -> Path:
    def change(document: Any) -> None:
        document["graph_module"]["graph"]["nodes"][-1]["target"] = operator

    return changed(sound, target, GRAPH, change)


def test_a_rewritten_copy_without_changes_is_read(sound: Path, tmp_path: Path) -> None:
    copy = written(tmp_path / "copy.pt2", entries_of(sound))
    inputs = (torch.ones(3, 4, dtype=torch.long), torch.ones(3, 4, dtype=torch.long))
    assert torch.equal(Eager(read_program(copy)).run(inputs)[0], Eager(read_program(sound)).run(inputs)[0])


def test_a_weight_that_is_a_pickle_is_refused_and_does_not_run(sound: Path, tmp_path: Path, marker: Path) -> None:
    payload = io.BytesIO()
    torch.save(Touches(marker), payload)

    def change(document: Any) -> None:
        first = next(iter(document["config"].values()))
        first["use_pickle"], first["path_name"] = True, "weight_0"

    hostile = changed(sound, tmp_path, WEIGHTS, change, data__weights__weight_0=payload.getvalue())
    with pytest.raises(ProgramError, match="pickle or a custom object"):
        read_program(hostile)
    assert not marker.exists()
    with pytest.raises(Exception):  # noqa: B017, PT011 -- whatever it raises, it has run
        torch.export.load(hostile)
    assert marker.exists(), "the stock loader runs it: this file is what it claims to be"


def test_a_size_that_is_python_is_refused_and_does_not_run(sound: Path, tmp_path: Path, marker: Path) -> None:
    text = f"__import__('pathlib').Path({str(marker)!r}).touch()"

    def change(document: Any) -> None:
        values = document["graph_module"]["graph"]["tensor_values"].values()
        dynamic = next(size for value in values for size in value["sizes"] if "as_expr" in size)
        dynamic["as_expr"]["expr_str"] = text

    hostile = changed(sound, tmp_path, GRAPH, change)
    with pytest.raises(ProgramError, match="not arithmetic over sizes"):
        read_program(hostile)
    assert not marker.exists()
    with pytest.raises(Exception):  # noqa: B017, PT011 -- whatever it raises, it has run
        torch.export.load(hostile)
    assert marker.exists(), "the stock loader runs it: this file is what it claims to be"


def test_a_custom_object_among_the_constants_is_refused_and_does_not_run(
    sound: Path, tmp_path: Path, marker: Path
) -> None:
    def change(document: Any) -> None:
        document["config"]["evil"] = {
            "path_name": "opaque_obj_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }

    payload = pickle.dumps(Touches(marker))
    hostile = changed(sound, tmp_path, CONSTANTS, change, data__constants__opaque_obj_0=payload)
    with pytest.raises(ProgramError, match="unknown entry"):
        read_program(hostile)
    hostile = changed(sound, tmp_path, CONSTANTS, change)
    with pytest.raises(ProgramError, match="pickle or a custom object"):
        read_program(hostile)
    assert not marker.exists()


def test_example_inputs_are_never_read(sound: Path, tmp_path: Path, marker: Path) -> None:
    entries = entries_of(sound) | {"data/sample_inputs/model.pt": pickle.dumps(Touches(marker))}
    read_program(written(tmp_path / "hostile.pt2", entries))
    assert not marker.exists()


def test_native_code_in_the_archive_is_refused(sound: Path, tmp_path: Path) -> None:
    entries = entries_of(sound) | {"data/aotinductor/model/model.so": b"\x7fELF"}
    with pytest.raises(ProgramError, match="unknown entry"):
        read_program(written(tmp_path / "hostile.pt2", entries))


@pytest.mark.parametrize(
    "operator",
    [
        "torch.hub.load",
        "torch.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.item.default",
        "torch.ops.aten.add_.Tensor",
        "torch.ops.aten.add.__class__",
        "torch.ops.__class__.mro.default",
        "torch.ops.profiler._record_function_enter_new.default",
        "torch.ops.higher_order.cond",
        "torch.ops.aten.no_such_operator.default",
        "_operator.methodcaller",
        "math.prod",
        "os.system",
        "#extension:evil",
    ],
)
def test_an_operator_that_is_not_tensor_arithmetic_is_refused_by_name(
    sound: Path, tmp_path: Path, operator: str
) -> None:
    with pytest.raises(ProgramError, match="operator") as caught:
        read_program(with_target(sound, tmp_path, operator))
    assert operator in str(caught.value)


def test_text_that_is_code_is_no_name(sound: Path, tmp_path: Path) -> None:
    def change(document: Any) -> None:
        values = document["graph_module"]["graph"]["tensor_values"]
        values["x = __import__('os').getcwd()"] = next(iter(values.values()))

    with pytest.raises(ProgramError, match="not an identifier"):
        read_program(changed(sound, tmp_path, GRAPH, change))


def test_a_compressed_entry_is_refused_before_it_is_unpacked(tmp_path: Path, sound: Path) -> None:
    entries = entries_of(sound) | {"data/weights/weight_0": bytes(64 * 2**20)}
    bomb = written(tmp_path / "bomb.pt2", entries, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ProgramError, match="compressed"):
        read_program(bomb)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_program_is_refused(sound: Path, tmp_path: Path, share: float) -> None:
    content = sound.read_bytes()
    short = tmp_path / "short.pt2"
    short.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ProgramError):
        read_program(short)


def test_an_entry_that_is_there_twice_is_refused(sound: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice.pt2"
    twice.write_bytes(sound.read_bytes())
    with zipfile.ZipFile(twice, "a") as archive:
        (name,) = (entry for entry in archive.namelist() if entry.endswith(GRAPH))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(name, b"{}")
    with pytest.raises(ProgramError, match="twice"):
        read_program(twice)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("storage_offset", {"as_int": 10**9}),
        ("storage_offset", {"as_int": -1}),
        ("sizes", [{"as_int": 10**6}, {"as_int": 10**6}]),
        ("strides", [{"as_int": 10**9}, {"as_int": 1}]),
        ("strides", [{"as_int": 0}, {"as_int": 0}, {"as_int": 0}]),
        ("sizes", [{"as_expr": {"expr_str": "s0"}}, {"as_int": 1}]),
    ],
)
def test_a_weight_that_reaches_beyond_its_bytes_is_refused(
    sound: Path, tmp_path: Path, field: str, value: object
) -> None:
    def change(document: Any) -> None:
        document["config"]["module.embedding.weight"]["tensor_meta"][field] = value

    with pytest.raises(ProgramError):
        read_program(changed(sound, tmp_path, WEIGHTS, change))


def test_a_value_used_before_it_is_computed_is_refused(sound: Path, tmp_path: Path) -> None:
    def change(document: Any) -> None:
        document["graph_module"]["graph"]["nodes"].reverse()

    with pytest.raises(ProgramError, match="before it is computed"):
        read_program(changed(sound, tmp_path, GRAPH, change))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"[" * 100_000, b"\xff\xfe"])
def test_a_graph_that_is_not_one_is_refused(sound: Path, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ProgramError):
        read_program(written(tmp_path / "hostile.pt2", entries_of(sound) | {GRAPH: content}))


def test_a_graph_of_another_schema_is_refused(sound: Path, tmp_path: Path) -> None:
    def change(document: Any) -> None:
        document["schema_version"]["major"] += 1

    with pytest.raises(ProgramError, match="schema"):
        read_program(changed(sound, tmp_path, GRAPH, change))


def test_a_branch_that_depends_on_the_data_is_refused_by_name(tmp_path: Path) -> None:
    class Branch(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))  # type: ignore[no-any-return]

    path = tmp_path / "branch.pt2"
    torch.export.save(torch.export.export(Branch(), (torch.ones(2, 2),)), path)
    with pytest.raises(ProgramError, match="cond"):
        read_program(path)


def test_in_place_operators_are_taken_only_where_the_program_is_captured_again(tmp_path: Path) -> None:
    class InPlace(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            y.add_(1)
            return y

    path = tmp_path / "in_place.pt2"
    torch.export.save(torch.export.export(InPlace(), (torch.ones(2, 2),)), path)
    with pytest.raises(ProgramError, match="in place"):
        read_program(path)
    program = read_program(path, in_place=True)
    assert torch.equal(Eager(program).run((torch.ones(2, 2),))[0], torch.full((2, 2), 3.0))


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    path.write_bytes(b"not a zip")
    with pytest.raises(ProgramError, match="not a readable"):
        read_program(path)
