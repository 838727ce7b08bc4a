import pytest

from gateway.route_table import read_route
from protos import control_pb2 as pb
from tests.gateway.backend import model, spec
from worker.errors import InvalidRequest
from worker.nouns import Axis, Signature, TensorSpec


def test_a_route_is_read_into_nouns() -> None:
    route = read_route(
        model(
            "minilm",
            version="3",
            replicas=["127.0.0.1:5"],
            inputs=[spec("ids", "INT64", ("batch", "sequence"))],
            outputs=[spec("embedding", "FP32", ("batch", 384))],
            axes=[pb.Axis(name="sequence", minimum=2, maximum=128), pb.Axis(name="batch", minimum=1)],
        )
    )
    assert route.signature == Signature(
        inputs=(TensorSpec("ids", "INT64", ("batch", "sequence")),),
        outputs=(TensorSpec("embedding", "FP32", ("batch", 384)),),
        axes=(Axis("sequence", 2, 128), Axis("batch", 1, None)),
    )
    assert route.replicas == {"127.0.0.1:5": "127.0.0.1:5"}
    assert route.label == "model 'minilm' version 3"
    assert (route.limits.max_batch_rows, route.limits.deadline_s) == (16, 10.0)


@pytest.mark.parametrize(
    ("route", "says"),
    [
        (model(""), "names no model"),
        (model(version="0"), "model 'echo' version '0': the version is a positive whole number"),
        (model(version="-1"), "positive whole number"),
        (model(version=""), "positive whole number"),
        (model(version="one"), "positive whole number"),
        (model(version="01"), "without leading zeros"),
        (model(inputs=[spec("x", "FP8", ("batch",))]), "input 'x' has an unknown datatype: 'FP8'"),
        (model(outputs=[spec("y", "", ("batch",))]), "output 'y' has an unknown datatype: ''"),
        (model(inputs=[spec("x", "FP32", ()), spec("x", "FP32", ())]), "inputs do not all have names of their own"),
        (model(deadline_s=0), "default_deadline_s is above 0 and finite; 0.0 came"),
        (model(deadline_s=float("inf")), "default_deadline_s is above 0 and finite"),
        (model(deadline_s=float("nan")), "default_deadline_s is above 0 and finite"),
        (model(max_inflight_per_replica=0), "max_inflight_per_replica is 1 or more"),
    ],
)
def test_a_route_that_makes_no_sense_is_refused(route: pb.ModelRoute, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        read_route(route)
