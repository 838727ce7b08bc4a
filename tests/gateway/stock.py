"""Stock clients: tritonclient's asyncio one, its generated stub, and what they send."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt
import tritonclient.grpc as blocking_client
import tritonclient.grpc.aio as client
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)

__all__ = [
    "MODEL_INFER",
    "ROWS",
    "InferenceServerException",
    "blocking_client",
    "channel",
    "client",
    "connected",
    "good_request",
    "infer",
    "infer_input",
    "post",
    "stub",
]


def infer_input(data: npt.NDArray[Any] = ROWS, name: str = "x") -> Any:
    given = client.InferInput(name, list(data.shape), np_to_triton_dtype(data.dtype))
    given.set_data_from_numpy(data)
    return given


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Any]:
    one = client.InferenceServerClient(address)
    try:
        yield one
    finally:
        await one.close()


@asynccontextmanager
async def channel(address: str, *options: tuple[str, int]) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own."""
    async with grpc.aio.insecure_channel(
        address, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1), *options]
    ) as one:
        yield one


@asynccontextmanager
async def stub(address: str) -> AsyncIterator[Any]:
    async with channel(address) as one:
        yield service_pb2_grpc.GRPCInferenceServiceStub(one)


async def post(raw: grpc.aio.Channel, method: str, message: bytes, **options: Any) -> bytes:
    """One call with bytes of our own making."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = raw.unary_unary(method)
    return await call(message, **options)


async def infer(raw: grpc.aio.Channel, message: bytes | None = None, **options: Any) -> bytes:
    """ModelInfer with `message`; without one, a good request for the model `echo`."""
    return await post(raw, MODEL_INFER, good_request() if message is None else message, **options)


def good_request() -> bytes:
    request = service_pb2.ModelInferRequest(model_name="echo", raw_input_contents=[ROWS.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=ROWS.shape)
    return bytes(request.SerializeToString())
