"""Server reflection, so that a client without our `.proto` files can call us.

The descriptors are those of the services that this server really answers, in a pool of their own.
"""

from typing import Final

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha.reflection import aio

from gateway import health, servicer
from protos import inference_pb2

SERVICE: Final = "grpc.reflection.v1alpha.ServerReflection"
NEWER_SERVICE: Final = "grpc.reflection.v1.ServerReflection"
"""The same messages under the name that newer clients try first."""


def reflection_handlers() -> tuple[grpc.GenericRpcHandler, ...]:
    pool = DescriptorPool()
    for descriptor in (inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, pb.DESCRIPTOR):
        pool.AddSerializedFile(descriptor.serialized_pb)
    reflection = aio.ReflectionServicer((servicer.SERVICE, health.SERVICE, SERVICE), pool=pool)
    handler: grpc.RpcMethodHandler[object, object] = grpc.stream_stream_rpc_method_handler(
        reflection.ServerReflectionInfo,
        pb.ServerReflectionRequest.FromString,
        pb.ServerReflectionResponse.SerializeToString,
    )
    return tuple(
        grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
        for name in (SERVICE, NEWER_SERVICE)
    )
