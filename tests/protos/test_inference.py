"""Our inference.proto against the descriptors that a stock client registers in the same process."""

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2, service_pb2

from protos import inference_pb2

THEIRS: dict[str, Descriptor] = {
    **model_config_pb2.DESCRIPTOR.message_types_by_name,
    **service_pb2.DESCRIPTOR.message_types_by_name,
}
OURS: dict[str, Descriptor] = dict(inference_pb2.DESCRIPTOR.message_types_by_name)


def pairs(ours: Descriptor, theirs: Descriptor) -> Iterator[tuple[Descriptor, Descriptor]]:
    yield ours, theirs
    for nested in ours.nested_types:
        yield from pairs(nested, theirs.nested_types_by_name[nested.name])


def kind(field: FieldDescriptor) -> tuple[object, ...]:
    of = field.message_type or field.enum_type
    return (
        field.number,
        field.type,
        field.is_repeated,
        of.full_name if of else None,
        field.containing_oneof.name if field.containing_oneof else None,
    )


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_message_reads_as_the_stock_clients_does(name: str) -> None:
    for ours, theirs in pairs(OURS[name], THEIRS[name]):
        assert {field.name: kind(field) for field in ours.fields} == {
            field.name: kind(theirs.fields_by_name[field.name]) for field in ours.fields
        }
        for enum in ours.enum_types:
            assert {value.name: value.number for value in enum.values} == {
                value.name: value.number for value in theirs.enum_types_by_name[enum.name].values
            }


@pytest.mark.parametrize("name", sorted(name for name in OURS if name.endswith("Request")))
def test_every_field_that_a_client_may_set_is_known(name: str) -> None:
    for ours, theirs in pairs(OURS[name], THEIRS[name]):
        assert set(ours.fields_by_name) == set(theirs.fields_by_name)


@pytest.mark.parametrize("name", ["InferParameter", "InferTensorContents", "ModelInferResponse"])
def test_what_travels_inside_requests_and_answers_is_whole(name: str) -> None:
    for ours, theirs in pairs(OURS[name], THEIRS[name]):
        assert set(ours.fields_by_name) == set(theirs.fields_by_name)


def test_data_types_have_the_protocols_numbers() -> None:
    theirs = model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"]
    ours = inference_pb2.DESCRIPTOR.enum_types_by_name["DataType"]
    assert {value.name: value.number for value in ours.values} == {value.name: value.number for value in theirs.values}


def test_every_call_takes_and_gives_the_stock_clients_messages() -> None:
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        stock = theirs[method.name]
        assert (method.input_type.full_name, method.output_type.full_name) == (
            stock.input_type.full_name,
            stock.output_type.full_name,
        )


def test_our_messages_live_beside_a_stock_clients() -> None:
    ours = inference_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"\0"])
    assert service_pb2.ModelInferRequest.FromString(ours.SerializeToString()).model_name == "m"
    assert inference_pb2.ModelInferRequest.DESCRIPTOR.file.pool is not service_pb2.DESCRIPTOR.pool
