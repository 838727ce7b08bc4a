from gateway.metadata import model_config, model_metadata, model_statistics, repository_index
from gateway.route_table import Route, read_route
from gateway.statistics import Totals
from protos import control_pb2, inference_pb2
from tests.gateway.backend import model, spec
from worker.nouns import ELEMENT_BYTES


def route(**fields: object) -> Route:
    return read_route(model(**fields))  # type: ignore[arg-type]


def test_a_batched_models_config_leaves_the_batch_axis_out() -> None:
    text = [spec("ids", "INT64", ("batch", "sequence")), spec("text", "BYTES", ("batch",))]
    config = model_config(route(inputs=text, max_batch_rows=8)).config
    assert config.max_batch_size == 8
    assert [list(one.dims) for one in config.input] == [[-1], []]
    assert [one.data_type for one in config.input] == [inference_pb2.TYPE_INT64, inference_pb2.TYPE_STRING]
    assert config.dynamic_batching.default_queue_policy.default_timeout_microseconds == 10_000_000
    assert config.dynamic_batching.max_queue_delay_microseconds == 500


def test_a_model_without_a_batch_axis_keeps_its_shapes() -> None:
    config = model_config(
        route(inputs=[spec("x", "FP32", (3, "n"))], outputs=[spec("y", "FP32", ())], batched=False)
    ).config
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [3, -1]
    assert list(config.output[0].dims) == []
    assert config.WhichOneof("scheduling_choice") is None


def test_the_largest_batch_is_the_least_of_the_limit_and_the_axis() -> None:
    axes = [control_pb2.Axis(name="batch", minimum=1, maximum=4)]
    assert model_config(route(axes=axes, max_batch_rows=8)).config.max_batch_size == 4
    assert model_config(route(axes=axes, max_batch_rows=2)).config.max_batch_size == 2
    assert model_config(route(max_batch_rows=0)).config.max_batch_size == (1 << 31) - 1


def test_every_datatype_has_a_number() -> None:
    for datatype in (*ELEMENT_BYTES, "BYTES"):
        config = model_config(route(inputs=[spec("x", datatype, ("batch",))])).config
        assert config.input[0].data_type != inference_pb2.TYPE_INVALID


def test_metadata_shows_whole_shapes_and_all_versions() -> None:
    metadata = model_metadata(route(), ["1", "2"])
    assert list(metadata.inputs[0].shape) == [-1, 4]
    assert list(metadata.versions) == ["1", "2"]


def test_a_started_batch_counts_as_one() -> None:
    assert model_statistics(route(), Totals()).execution_count == 0
    assert model_statistics(route(), Totals(microbatches=1)).execution_count == 1
    assert model_statistics(route(), Totals(microbatches=2_000_000)).execution_count == 2


def test_the_index_says_what_is_not_ready_and_why() -> None:
    routes = [route(), route(version="2", ready=False, reason="stage 1 is starting")]
    both = repository_index(routes, only_ready=False).models
    assert [(one.version, one.state, one.reason) for one in both] == [
        ("1", "READY", ""),
        ("2", "UNAVAILABLE", "stage 1 is starting"),
    ]
    assert len(repository_index(routes, only_ready=True).models) == 1
