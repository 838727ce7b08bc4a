import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.model_yaml import (
    BatchingSection,
    ModelYaml,
    known_keys,
    model_yaml_text,
    parse_model_yaml,
    read_model_yaml,
    write_model_yaml,
)
from worker.yaml_lines import ModelYamlError


def refusal(text: str) -> str:
    with pytest.raises(ModelYamlError) as caught:
        parse_model_yaml(text.encode(), "model.yaml")
    return str(caught.value)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "null\n", "{}"])
def test_an_empty_file_means_the_defaults(text: str) -> None:
    assert parse_model_yaml(text.encode(), "model.yaml") == ModelYaml()


def test_every_key_can_be_given() -> None:
    model = parse_model_yaml(
        b"""
handler: package.module:Handler
versions: [1, 3]
stages: 2
replicas: [2, 1]
cpus: 0.5
device: cuda:1
runtime: eager
batching: {max_rows: 8, max_wait_ms: 0, max_bytes: 4096, max_padding: 0.25}
deadline_s: 5
limits: {max_inflight: 10, max_inflight_per_replica: 4, max_queue_rows: 100}
drain_s: 1.5
""",
        "model.yaml",
    )
    assert model.versions == (1, 3)
    assert model.stage_replicas == (2, 1)
    assert model.batching == BatchingSection(max_rows=8, max_wait_ms=0, max_bytes=4096, max_padding=0.25)
    assert model.limits.max_queue_rows == 100
    assert model.stage(0).threads == 1


def test_each_stage_can_have_its_own_cores_device_and_kind_of_node() -> None:
    model = parse_model_yaml(
        b"""
stages: 2
cpus: [2.5, 1]
memory_mib: [0, 512]
device: [cpu, cuda]
placement: {resources: [{}, {accelerator: 0.5}], labels: {zone: east, example.org/kind: a}}
""",
        "model.yaml",
    )
    first, second = model.stage(0), model.stage(1)
    assert (first.threads, first.bundle, first.labels) == (
        2,
        {"CPU": 2.5},
        {"zone": "east", "example.org/kind": "a"},
    )
    assert second.bundle == {"CPU": 1.0, "GPU": 1.0, "accelerator": 0.5, "memory": 512.0 * 2**20}


def test_a_model_without_a_most_is_not_scaled() -> None:
    assert ModelYaml(stages=2).scaled_between is None
    assert ModelYaml(stages=2).from_zero_wait_s == 0


def test_what_is_scaled_begins_within_its_bounds() -> None:
    model = parse_model_yaml(b"{stages: 2, replicas: 1, autoscaling: {min: [2, 1], max: 4}}", "model.yaml")
    assert model.scaled_between == ((2, 1), (4, 4))
    assert model.stage_replicas == (2, 1)
    asleep = parse_model_yaml(b"autoscaling: {min: 0, max: 4, from_zero_wait_s: 9}", "model.yaml")
    assert (asleep.stage_replicas, asleep.from_zero_wait_s) == ((1,), 9)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("autoscaling: {min: 3, max: 2}", "1: autoscaling: expected no min above its max"),
        (
            "stages: 2\nautoscaling: {min: [0, 1], max: 2}",
            "2: autoscaling: expected a min of 0 for every stage, or for",
        ),
        ("stages: 2\nautoscaling: {max: [1, 2, 3]}", "2: autoscaling: max: expected 2 values, one for each stage"),
        ("autoscaling:\n  max: 0", "2: autoscaling.max: expected a whole number from 1 to 1024"),
        ("autoscaling:\n  maxx: 3", "2: autoscaling.maxx: unknown key; did you mean max?"),
        ("autoscaling:\n  up_delay_s: -1", "2: autoscaling.up_delay_s: expected greater than or equal to 0, got -1"),
        ("sharing: {priority: 10}", "1: sharing.priority: expected less than or equal to 9, got 10"),
        ("placement: {resources: {CPU: 2}}", "1: placement.resources: expected names and amounts above 0"),
        (
            "placement: {resources: {memory: 2}}",
            "1: placement.resources: expected names and amounts above 0 such as {acc",
        ),
        ("memory_mib: 0.5", "1: memory_mib: expected a whole number of MiB from 0 to 16777216, or a list"),
        ("memory_mib: -1", "1: memory_mib: expected a whole number of MiB from 0"),
        (
            "stages: 2\nmemory_mib: [1]",
            "2: memory_mib: expected 2 values, one for each stage, or a single one, got [1]",
        ),
        ("placement: {resources: {gold: 0}}", "1: placement.resources: expected names and amounts above 0"),
        ("placement: {labels: {zone: 3}}", "1: placement.labels: expected names and values"),
        (
            "placement: {labels: {zone: a-}}",
            "1: placement.labels: expected names and values such as {zone: a}, of up to",
        ),
        ("placement: {labels: {zone: '!in(a)'}}", "1: placement.labels: expected names and values"),
        ("placement: {labels: {-zone: a}}", "1: placement.labels: expected names and values"),
        ("placement: {labels: {a/b/c: a}}", "1: placement.labels: expected names and values"),
        ("device: tpu", "1: device: expected cpu, cuda or cuda:N"),
        ("stages: 2\ncpus: [1]", "2: cpus: expected 2 values, one for each stage, or a single one, got [1]"),
    ],
)
def test_scaling_and_placement_that_cannot_be_are_refused_with_the_line(text: str, told: str) -> None:
    assert f"model.yaml:{told}" in refusal(text)


@pytest.mark.parametrize("path", ["../code", "/code", "code/..", "code/", "", ".", ".code", "a\\b", "a b"])
def test_code_that_is_not_in_the_models_folder_is_refused_with_the_line(path: str) -> None:
    told = refusal(f"handler: a:B\nhandler_code: '{path}'")
    assert told.startswith("model.yaml:2: handler_code: expected a folder inside of the model's, by its relative path")


def test_code_is_not_taken_from_an_artifact_and_not_without_a_handler() -> None:
    told = refusal("handler: a:B\nhandler_code: 1/handler")
    assert told.startswith("model.yaml:2: handler_code: expected a folder outside of the versions: no code is taken")
    assert "expected `handler` beside it" in refusal("handler_code: code")
    model = parse_model_yaml(b"{handler: 'a:B', handler_code: src/of_a}", "model.yaml")
    assert model.handler_code == "src/of_a"


def test_one_replica_count_stands_for_every_stage() -> None:
    assert parse_model_yaml(b"{stages: 3, replicas: 2}", "model.yaml").stage_replicas == (2, 2, 2)


def test_threads_are_the_whole_cpus_that_a_replica_takes() -> None:
    assert [ModelYaml(cpus=cpus).stage(0).threads for cpus in (0.5, 1.0, 2.9, 4.0)] == [1, 1, 2, 4]


def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_known_key() -> None:
    assert refusal("stages: 2\n\nreplica: 3\n") == "model.yaml:3: replica: unknown key; did you mean replicas?"
    assert refusal("batching:\n  # rows\n  max_row: 3\n") == (
        "model.yaml:3: batching.max_row: unknown key; did you mean max_rows?"
    )


def test_an_unknown_key_that_is_like_no_other_shows_all_that_are_known() -> None:
    assert refusal("limits:\n  zz: 3\n") == (
        "model.yaml:2: limits.zz: unknown key; known here: max_inflight, max_inflight_per_replica, max_queue_rows, "
        "admission, hedge_share"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batching:\n  max_rows: 0", "2: batching.max_rows: expected greater than or equal to 1, got 0"),
        (
            "\ncpus: yes",
            "2: cpus: expected a number above 0 and up to 1024, or a list with one for each stage, got True",
        ),
        ("stages: 2.0", "1: stages: expected a valid integer, got 2.0"),
        ("runtime: fast", "1: runtime: expected 'fastest' or 'eager', got 'fast'"),
        ("drain_s: .nan", "1: drain_s: expected a finite number, got nan"),
        (
            "stages: 2\nreplicas: [1]",
            "2: replicas: expected 2 values, one for each stage, or a single one, got [1]",
        ),
        ("batching: 4", "1: batching: expected keys below it: max_rows, max_wait_ms, max_bytes, max_padding, got 4"),
    ],
)
def test_a_wrong_value_is_refused_with_line_key_expected_and_got(text: str, message: str) -> None:
    assert refusal(text) == f"model.yaml:{message}"


@pytest.mark.parametrize("value", ["[0]", "[]", "[1, 1]", "latest", "3", "[true]"])
def test_versions_are_newest_or_a_list_of_numbers(value: str) -> None:
    assert refusal(f"versions: {value}").startswith("model.yaml:1: versions: expected ")


@pytest.mark.parametrize("value", ["0", "-1", "[]", "[2, 0]", "9999", "two"])
def test_replicas_are_positive_and_bounded(value: str) -> None:
    assert refusal(f"replicas: {value}").startswith("model.yaml:1: replicas: expected a whole number from 1")


@pytest.mark.parametrize("value", ["os.system", "a:b:c", "':Class'", "a/b:C"])
def test_a_handler_is_a_module_and_a_class(value: str) -> None:
    assert "model.yaml:1: handler: expected module:Class" in refusal(f"handler: {value}")


def test_every_problem_is_told_at_once_in_the_order_of_the_file() -> None:
    lines = refusal("drain_s: -1\nstagess: 2\nruntime: x").splitlines()
    assert [line.split(" ")[0] for line in lines] == ["model.yaml:1:", "model.yaml:2:", "model.yaml:3:"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: 1\nstages: 2", "model.yaml:2: stages: given twice"),
        ("a: &x 1\nb: *x", "model.yaml:2: *x: aliases are not taken; write the value out"),
        ("[" * 50, "model.yaml:1: nested more than 8 deep; no key of model.yaml is"),
        ("- 1", "model.yaml:1: expected keys such as `stages: 2`, got [1]"),
        ("[1]: 2", "model.yaml:1: expected a key, got a list or a mapping"),
    ],
)
def test_what_yaml_allows_and_we_do_not_is_refused_with_its_line(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize(
    "text", ["stages: {", "a: b: c", "\x00", "stages: !!python/object/apply:os.system [ls]", "deadline_s: 2024-13-45"]
)
def test_text_that_is_not_plain_yaml_is_refused(text: str) -> None:
    assert refusal(text).startswith("model.yaml:1: ")


def test_a_missing_file_says_that_an_empty_one_is_enough(tmp_path: Path) -> None:
    with pytest.raises(ModelYamlError, match="an empty file is enough"):
        read_model_yaml(tmp_path / "model.yaml")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_bytes(b"#" * 100_000)
    with pytest.raises(ModelYamlError, match="larger than 65536 bytes"):
        read_model_yaml(tmp_path / "model.yaml")


def test_what_is_written_is_read_back_and_says_each_unit(tmp_path: Path) -> None:
    model = ModelYaml(handler="worker.text:Embed", versions=(1, 2), stages=2, replicas=(2, 1), cpus=0.5, drain_s=7)
    path = tmp_path / "model.yaml"
    write_model_yaml(path, model)
    assert read_model_yaml(path) == model
    lines = path.read_text().splitlines()
    for key in known_keys():
        at = next(number for number, line in enumerate(lines) if line.strip().startswith(key.split(".")[-1] + ":"))
        assert lines[at - 1].strip().startswith("# ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.yaml"]


@pytest.mark.parametrize("below", ["file", "file/below"])
def test_a_file_that_cannot_be_written_is_named(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / below / "model.yaml"
    with pytest.raises(NotADirectoryError) as caught:
        write_model_yaml(path, ModelYaml())
    assert caught.value.filename == str(path)
    assert caught.value.filename2 is None


def test_a_full_disk_leaves_the_file_as_it_was(small_disk: Path) -> None:
    path = small_disk / "model.yaml"
    path.write_text("replicas: 3\n")
    with pytest.raises(OSError, match="No space left on device"):
        (small_disk / "other").write_bytes(bytes(2 << 20))
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{path}'")):
        write_model_yaml(path, ModelYaml())
    assert path.read_text() == "replicas: 3\n"
    assert sorted(entry.name for entry in small_disk.iterdir()) == ["model.yaml", "other"]


@given(
    st.builds(
        ModelYaml,
        stages=st.just(2),
        replicas=st.one_of(st.integers(1, 9), st.tuples(st.integers(1, 9), st.integers(1, 9))),
        versions=st.one_of(st.just("newest"), st.lists(st.integers(1, 99), min_size=1, unique=True).map(tuple)),
        cpus=st.floats(0.01, 64),
        memory_mib=st.one_of(st.integers(0, 2**24), st.tuples(st.integers(0, 9), st.integers(0, 9))),
        deadline_s=st.floats(1e-3, 1000),
        handler=st.one_of(st.none(), st.just("true:Null")),
    )
)
def test_any_model_survives_writing_and_reading(model: ModelYaml) -> None:
    assert parse_model_yaml(model_yaml_text(model).encode(), "model.yaml") == model


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    with suppress(ModelYamlError):
        parse_model_yaml(data, "model.yaml")
