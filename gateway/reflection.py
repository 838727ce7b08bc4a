"""Server reflection, so that a client without our `.proto` files can call us.

The descriptors are those of the services that this server really answers, in a pool of their own.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha.reflection import aio

from gateway import health, servicer
from gateway.http2.call import CallContext, Methods, Streaming
from protos import inference_pb2
from worker.errors import InvalidRequest

SERVICE: Final = "grpc.reflection.v1alpha.ServerReflection"
NEWER_SERVICE: Final = "grpc.reflection.v1.ServerReflection"
"""The same messages under the name that newer clients try first."""


def reflection_methods() -> Methods:
    pool: Any = DescriptorPool()
    for descriptor in (inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, pb.DESCRIPTOR):
        pool.AddSerializedFile(descriptor.serialized_pb)
    reflection = aio.ReflectionServicer((servicer.SERVICE, health.SERVICE, SERVICE), pool=pool)

    async def answer(messages: AsyncIterator[bytes], context: CallContext) -> AsyncGenerator[bytes, None]:
        async for response in reflection.ServerReflectionInfo(_requests(messages), context):
            yield response.SerializeToString()

    call: Streaming = answer
    return Methods(unary={}, streaming={f"/{name}/ServerReflectionInfo": call for name in (SERVICE, NEWER_SERVICE)})


async def _requests(messages: AsyncIterator[bytes]) -> AsyncIterator[pb.ServerReflectionRequest]:
    async for message in messages:
        try:
            yield pb.ServerReflectionRequest.FromString(message)
        except DecodeError as error:
            raise InvalidRequest(f"not a ServerReflectionRequest: {error}") from error
