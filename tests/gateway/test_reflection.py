"""Server reflection, used as a client without our `.proto` files uses it."""

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2 as pb

from gateway.reflection import NEWER_SERVICE, SERVICE
from tests.gateway.backend import running
from tests.gateway.stock import MODEL_INFER, ROWS, channel


async def ask(raw: grpc.aio.Channel, service: str, *requests: Any) -> Sequence[Any]:
    call: Any = raw.stream_stream(
        f"/{service}/ServerReflectionInfo",
        pb.ServerReflectionRequest.SerializeToString,
        pb.ServerReflectionResponse.FromString,
    )(iter(requests), timeout=10)
    return [response async for response in call]


@pytest.mark.parametrize("service", [SERVICE, NEWER_SERVICE])
async def test_the_services_are_listed(service: str) -> None:
    async with running() as one, channel(one.address) as raw:
        (response,) = await ask(raw, service, pb.ServerReflectionRequest(list_services=""))
    assert [found.name for found in response.list_services_response.service] == [
        "grpc.health.v1.Health",
        SERVICE,
        "inference.GRPCInferenceService",
    ]


async def test_a_client_can_call_us_with_nothing_but_what_reflection_tells_it() -> None:
    async with running() as one, channel(one.address) as raw:
        wanted = ["inference.GRPCInferenceService", "grpc.health.v1.Health", SERVICE]
        requests = [pb.ServerReflectionRequest(file_containing_symbol=symbol) for symbol in wanted]
        pool: Any = DescriptorPool()
        for response in await ask(raw, SERVICE, *requests):
            for file in response.file_descriptor_response.file_descriptor_proto:
                pool.Add(FileDescriptorProto.FromString(file))
        services = [pool.FindServiceByName(name) for name in wanted]
        assert all(service.methods for service in services)
        infer = services[0].methods_by_name["ModelInfer"]
        request: Any = GetMessageClass(infer.input_type)(model_name="echo", raw_input_contents=[ROWS.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=ROWS.shape)
        call: Any = raw.unary_unary(
            MODEL_INFER,
            GetMessageClass(infer.input_type).SerializeToString,
            GetMessageClass(infer.output_type).FromString,
        )
        assert list((await call(request)).raw_output_contents) == [ROWS.tobytes()]


async def test_an_unknown_symbol_is_not_found() -> None:
    async with running() as one, channel(one.address) as raw:
        (response,) = await ask(raw, SERVICE, pb.ServerReflectionRequest(file_containing_symbol="no.Such"))
    assert response.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
