"""The gateway as a stock client sees it, over real sockets, with a real worker's door behind it."""

import asyncio
import re
from typing import Any

import grpc
import grpc.aio
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

from gateway.servicer import NOT_SUPPORTED
from gateway.settings import ServerLimits
from tests.gateway.backend import model, running, served, spec, table
from tests.gateway.gate import Gate
from tests.gateway.messages import REFUSED
from tests.gateway.stock import (
    ROWS,
    InferenceServerException,
    blocking_client,
    channel,
    connected,
    good_request,
    infer,
    infer_input,
    post,
    stub,
)
from worker.errors import InvalidRequest, Overloaded
from worker.nouns import Answer, Forecast, Load, Tensor, Work

ARRAYS: list[npt.NDArray[Any]] = [
    np.array([[True, False, True]]),
    *(np.array([[1, 0, 100]], kind) for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")),
    np.array([[0.5, -0.0, np.inf]], np.float16),
    np.array([[0.5, -3.0, np.inf]], ml_dtypes.bfloat16),
    np.array([[0.5, np.nan, 1e30]], np.float32),
    np.array([[0.5, -3.0, 1e300]], np.float64),
    np.array([[b"a\0b", b"", "\u00e9\0".encode()]], np.object_),
]


def says(error: InferenceServerException) -> tuple[str, str]:
    return str(error.status()).removeprefix("StatusCode."), error.message()


async def test_a_blocking_stock_client_gets_its_answer() -> None:
    async with running() as one:

        def ask() -> tuple[npt.NDArray[Any], str]:
            with blocking_client.InferenceServerClient(one.address) as client:
                assert client.is_server_live()
                assert client.is_server_ready()
                assert client.is_model_ready("echo")
                assert client.is_model_ready("echo", "1")
                result = client.infer("echo", [infer_input()], request_id="7")
                return result.as_numpy("x"), result.get_response().id

        rows, request_id = await asyncio.to_thread(ask)
    np.testing.assert_array_equal(rows, ROWS)
    assert request_id == "7"


async def test_an_asyncio_stock_client_gets_its_answer() -> None:
    async with running() as one, connected(one.address) as client:
        result = await client.infer("echo", [infer_input()], request_id="7")
        np.testing.assert_array_equal(result.as_numpy("x"), ROWS)
        response = result.get_response()
        assert (response.model_name, response.model_version, response.id) == ("echo", "1", "7")


@pytest.mark.parametrize("array", ARRAYS, ids=[np_to_triton_dtype(array.dtype) for array in ARRAYS])
async def test_every_datatype_comes_back_as_it_was_sent(array: npt.NDArray[Any]) -> None:
    tensor = spec("x", np_to_triton_dtype(array.dtype), ("batch", 3))
    async with running(served(inputs=[tensor], outputs=[tensor])) as one, connected(one.address) as client:
        result = (await client.infer("echo", [infer_input(array)])).as_numpy("x")
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)


async def test_typed_contents_are_answered_raw() -> None:
    request = service_pb2.ModelInferRequest(model_name="echo")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1, 2, 3, 4])
    async with running() as one, stub(one.address) as calls:
        response = await calls.ModelInfer(request)
    assert not response.outputs[0].HasField("contents")
    assert list(response.raw_output_contents) == [np.array([1, 2, 3, 4], np.float32).tobytes()]


async def test_an_empty_output_still_has_its_raw_entry() -> None:
    async def nothing(_: Work) -> Answer:
        return Answer((Tensor("found", "FP32", (0, 3), b""), Tensor("x", "FP32", (1,), bytes(4))))

    outputs = [spec("found", "FP32", ("n", 3)), spec("x", "FP32", ("batch",))]
    async with running(served(outputs=outputs), serve=nothing) as one, connected(one.address) as client:
        result = await client.infer("echo", [infer_input()])
        assert result.as_numpy("found").shape == (0, 3)
        assert result.as_numpy("x").shape == (1,)


async def test_a_client_gets_the_outputs_that_it_asks_for() -> None:
    inputs = [spec("x", "FP32", ("batch", 4)), spec("y", "FP32", ("batch", 4))]
    async with running(served(inputs=inputs, outputs=inputs)) as one, connected(one.address) as client:
        given = [infer_input(), infer_input(ROWS + 1, "y")]
        only = [blocking_client.InferRequestedOutput("y")]
        result = await client.infer("echo", given, outputs=only)
        assert result.as_numpy("x") is None
        np.testing.assert_array_equal(result.as_numpy("y"), ROWS + 1)


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
async def test_a_compressed_request_is_read(compression: str) -> None:
    async with running() as one, connected(one.address) as client:
        result = await client.infer("echo", [infer_input()], compression_algorithm=compression)
        np.testing.assert_array_equal(result.as_numpy("x"), ROWS)


async def test_a_large_tensor_goes_there_and_back() -> None:
    tensor = spec("x", "FP32", ("batch", 2_000_000))
    array = np.random.default_rng(0).random((2, 2_000_000), np.float32)
    async with running(served(inputs=[tensor], outputs=[tensor])) as one, connected(one.address) as client:
        np.testing.assert_array_equal((await client.infer("echo", [infer_input(array)])).as_numpy("x"), array)


async def test_an_empty_version_is_the_newest_ready_one() -> None:
    versions = [served(version=version) for version in ("2", "10", "9")]
    async with running(*versions, served(version="11", ready=False)) as one, connected(one.address) as client:
        for asked, answered in (("", "10"), ("2", "2"), ("9", "9"), ("10", "10")):
            result = await client.infer("echo", [infer_input()], model_version=asked)
            assert result.get_response().model_version == answered
        assert [await client.is_model_ready("echo", version) for version in ("2", "11", "3")] == [True, False, False]
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("echo", [infer_input()], model_version="11")
        assert says(caught.value) == (
            "UNAVAILABLE",
            "model 'echo' version 11 is not ready: its workers are starting",
        )


@pytest.mark.parametrize(
    ("name", "version", "status", "message"),
    [
        ("nope", "", "NOT_FOUND", "Request for unknown model: 'nope' is not found"),
        ("echo", "9", "NOT_FOUND", "Request for unknown model: 'echo' has no version '9'; its versions are 1, 3"),
        ("echo", "one", "NOT_FOUND", "Request for unknown model: 'echo' has no version 'one'; its versions are 1, 3"),
        ("", "", "INVALID_ARGUMENT", "the request names no model; set model_name"),
        ("broken", "", "UNAVAILABLE", "model 'broken' version 1 is not ready: program.pt2 is damaged"),
    ],
)
async def test_a_model_that_cannot_be_had_is_told_plainly(name: str, version: str, status: str, message: str) -> None:
    broken = served("broken", ready=False, reason="program.pt2 is damaged")
    async with running(served(), served(version="3"), broken) as one, connected(one.address) as client:
        with pytest.raises(InferenceServerException) as caught:
            await client.infer(name, [infer_input()], model_version=version)
    assert says(caught.value) == (status, message)


async def test_every_bad_request_is_refused_over_the_wire_and_never_reaches_the_worker() -> None:
    gate = Gate()
    async with running(serve=gate.serve) as one, stub(one.address) as calls:
        for what, request, message in REFUSED:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calls.ModelInfer(service_pb2.ModelInferRequest.FromString(request.SerializeToString()))
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, what
            assert re.search(message, caught.value.details() or ""), what
        assert one.inflight == 0
    assert gate.entered == 0


async def test_a_name_that_is_not_utf8_is_refused_over_the_wire() -> None:
    async with running() as one, channel(one.address) as raw:
        for method, kind in (("ModelInfer", "ModelInferRequest"), ("ModelMetadata", "ModelMetadataRequest")):
            with pytest.raises(grpc.aio.AioRpcError, match=f"not a {kind}, or a name in it is not UTF-8") as caught:
                await post(raw, f"/inference.GRPCInferenceService/{method}", b"\x0a\x02\xff\xfe")
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_over_the_size_limit_is_refused() -> None:
    tensor = spec("x", "FP32", ("batch", "n"))
    limits = ServerLimits(max_message_bytes=100_000)
    async with (
        running(served(inputs=[tensor], outputs=[tensor]), limits=limits) as one,
        connected(one.address) as client,
    ):
        with pytest.raises(InferenceServerException, match="larger than max") as caught:
            await client.infer("echo", [infer_input(np.zeros((1, 30_000), np.float32))])
        assert says(caught.value)[0] == "RESOURCE_EXHAUSTED"
        await client.infer("echo", [infer_input(np.zeros((1, 20_000), np.float32))])


async def test_a_small_message_that_unpacks_into_a_large_one_is_refused() -> None:
    limits = ServerLimits(max_message_bytes=100_000)
    async with running(limits=limits) as one, channel(one.address) as raw:
        with pytest.raises(grpc.aio.AioRpcError, match="unpacks to more than the 100000 bytes"):
            await infer(raw, bytes(50_000_000), compression=grpc.Compression.Gzip)


async def through(gate: Gate, client: Any) -> None:
    """One request gets through: what comes after it finds every connection open."""
    gate.open()
    await client.infer("echo", [infer_input()])
    gate.close()


async def test_the_clients_deadline_reaches_the_worker_and_ends_the_work() -> None:
    gate = Gate()
    async with running(serve=gate.serve) as one, connected(one.address) as client:
        await through(gate, client)
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("echo", [infer_input()], client_timeout=1)
        assert says(caught.value)[0] == "DEADLINE_EXCEEDED"
        await gate.until(cancelled=1)
        assert one.inflight == 0
    assert 0 < gate.remaining[1] < 2, "gRPC rounds it up; the model's own is 10 s"


async def test_the_timeout_parameter_ends_the_work() -> None:
    gate = Gate()
    async with running(serve=gate.serve) as one, connected(one.address) as client:
        await through(gate, client)
        with pytest.raises(InferenceServerException, match="the deadline passed") as caught:
            await client.infer("echo", [infer_input()], timeout=1_000_000)
        assert says(caught.value)[0] == "DEADLINE_EXCEEDED"
        await gate.until(cancelled=1)


async def test_a_request_without_a_deadline_gets_the_models() -> None:
    gate = Gate()
    async with running(serve=gate.serve) as one, connected(one.address) as client:
        await through(gate, client)
        one.apply(model(replicas=[one.worker], deadline_s=1))
        with pytest.raises(InferenceServerException, match="the deadline passed") as caught:
            await client.infer("echo", [infer_input()])
        assert says(caught.value)[0] == "DEADLINE_EXCEEDED"
        await gate.until(cancelled=1)


async def test_a_client_that_cancels_ends_the_work() -> None:
    gate = Gate()
    async with running(serve=gate.serve) as one, connected(one.address) as client:
        asking = asyncio.create_task(client.infer("echo", [infer_input()]))
        await gate.until(entered=1)
        assert one.inflight == 1
        asking.cancel()
        await gate.until(entered=1, cancelled=1)
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(one.gateway.routes.find("echo", "").admission.idle(), 10)


async def test_a_client_that_goes_away_ends_the_work() -> None:
    gate = Gate()
    async with running(serve=gate.serve) as one:
        async with channel(one.address) as raw:
            asking = asyncio.create_task(infer(raw))
            await gate.until(entered=1)
        await gate.until(cancelled=1)
        await asyncio.gather(asking, return_exceptions=True)


async def test_what_is_over_the_models_bound_is_told_so_at_once() -> None:
    gate = Gate()
    async with running(served(max_inflight=2), serve=gate.serve) as one, connected(one.address) as client:
        held = [asyncio.create_task(client.infer("echo", [infer_input()])) for _ in range(2)]
        await gate.until(entered=2)
        with pytest.raises(InferenceServerException, match="already has 2 requests in flight") as caught:
            await client.infer("echo", [infer_input()])
        assert says(caught.value)[0] == "RESOURCE_EXHAUSTED"
        gate.open()
        for result in await asyncio.gather(*held):
            np.testing.assert_array_equal(result.as_numpy("x"), ROWS)
        await client.infer("echo", [infer_input()])
        assert one.inflight == 0


async def test_what_is_over_every_replicas_bound_waits_for_its_turn() -> None:
    gate = Gate()
    async with running(served(max_inflight_per_replica=1), serve=gate.serve) as one, connected(one.address) as client:
        held = [asyncio.create_task(client.infer("echo", [infer_input()])) for _ in range(4)]
        await gate.until(entered=1)
        assert gate.entered == 1
        gate.open()
        for result in await asyncio.gather(*held):
            np.testing.assert_array_equal(result.as_numpy("x"), ROWS)
        assert one.inflight == 0


async def test_what_would_be_answered_too_late_is_refused_before_it_is_sent() -> None:
    gate = Gate()
    busy = Load(queued_rows=1000, seconds_per_row=0.05, forecast=Forecast(50.0, 0.05))
    async with running(served(deadline_s=100), serve=gate.serve, load=busy) as one, connected(one.address) as client:
        first = asyncio.create_task(client.infer("echo", [infer_input()], timeout=20_000_000))
        await gate.until(entered=1)
        with pytest.raises(InferenceServerException, match="would answer in about") as caught:
            await client.infer("echo", [infer_input()], timeout=20_000_000)
        assert gate.entered == 1
        assert says(caught.value)[0] == "RESOURCE_EXHAUSTED"
        patient = asyncio.create_task(client.infer("echo", [infer_input()], timeout=90_000_000))
        await gate.until(entered=2)
        gate.open()
        await asyncio.gather(first, patient)


async def test_a_refusal_of_ours_is_counted_with_how_long_it_took_and_a_workers_is_not() -> None:
    gate = Gate()

    async def full(_: Work) -> Answer:
        raise Overloaded("the replica's queue is full")

    async with running(served(max_inflight=1), serve=gate.serve) as one, channel(one.address) as raw:
        held = asyncio.create_task(infer(raw))
        await gate.until(entered=1)
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError, match="already has 1 requests in flight"):
                await infer(raw)
        gate.open()
        await held
        (ours,) = one.gateway.routes.report("me").lanes
    async with running(serve=full) as one, channel(one.address) as raw:
        with pytest.raises(grpc.aio.AioRpcError, match="queue is full"):
            await infer(raw)
        (theirs,) = one.gateway.routes.report("me").lanes
    assert (ours.refused, sum(ours.refusal_took.values())) == (3, 3)
    assert (theirs.refused, sum(theirs.refusal_took.values())) == (1, 0)


async def test_calls_over_the_processs_bound_are_told_so_at_once() -> None:
    gate = Gate()
    limits = ServerLimits(max_calls=1)
    async with running(serve=gate.serve, limits=limits) as one, connected(one.address) as client:
        held = asyncio.create_task(client.infer("echo", [infer_input()]))
        await gate.until(entered=1)
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("echo", [infer_input()])
        assert says(caught.value)[0] == "RESOURCE_EXHAUSTED"
        gate.open()
        await held


async def test_streams_over_a_connections_bound_wait_for_their_turn() -> None:
    gate = Gate()
    limits = ServerLimits(max_streams=2)
    async with running(serve=gate.serve, limits=limits) as one, channel(one.address) as raw:
        held = [asyncio.create_task(infer(raw)) for _ in range(5)]
        await gate.until(entered=2)
        assert gate.entered == 2
        gate.open()
        assert len(await asyncio.gather(*held)) == 5


async def test_connections_over_the_bound_are_closed() -> None:
    gate = Gate()
    async with running(serve=gate.serve, limits=ServerLimits(max_connections=1)) as one, channel(one.address) as first:
        held = asyncio.create_task(infer(first))
        await gate.until(entered=1)
        async with channel(one.address) as second:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await infer(second, timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        gate.open()
        await held


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InvalidRequest("token 99999 is not in the vocabulary"), "INVALID_ARGUMENT", "token 99999 is not in the vocab"),
        (Overloaded("the replica's queue is full"), "RESOURCE_EXHAUSTED", "the replica's queue is full"),
        (ValueError("a secret path"), "INTERNAL", "the worker failed on this request; its log says why"),
        (InvalidRequest("\u00e9" * 100_000), "INVALID_ARGUMENT", "\u00e9\u00e9\u00e9"),
    ],
)
async def test_a_workers_error_reaches_the_client(error: Exception, status: str, message: str) -> None:
    async def fail(_: Work) -> Answer:
        raise error

    async with running(serve=fail) as one, connected(one.address) as client:
        with pytest.raises(InferenceServerException, match=message) as caught:
            await client.infer("echo", [infer_input()])
        assert says(caught.value)[0] == status
        assert one.inflight == 0


async def test_our_own_failure_is_logged_and_told_without_details(caplog: pytest.LogCaptureFixture) -> None:
    async def nonsense(_: Work) -> Answer:
        return Answer((Tensor("x", "FP32", (-(1 << 40), 1 << 62), b""),))

    async with running(serve=nonsense) as one, connected(one.address) as client:
        one.gateway.routes.find("echo", "").counters = None  # type: ignore[assignment]
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("echo", [infer_input()])
    assert says(caught.value) == ("INTERNAL", "the gateway failed on this request; its log says why")
    assert "AttributeError" in caplog.text


async def test_priority_and_trace_context_reach_the_worker() -> None:
    gate = Gate()
    gate.open()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with running(serve=gate.serve) as one, connected(one.address) as client:
        await client.infer("echo", [infer_input()], priority=1, headers={"traceparent": trace})
        await client.infer("echo", [infer_input()], priority=9, headers={"traceparent": "nonsense"})
        await client.infer("echo", [infer_input()])
    assert [(work.priority, work.traceparent) for work in gate.seen] == [(0, trace), (8, ""), (4, "")]


async def test_parameters_that_other_servers_hand_to_the_model_are_passed_over() -> None:
    """On the request by tritonclient's own argument; on tensors, where it has none, in its generated messages."""
    request = service_pb2.ModelInferRequest.FromString(good_request())
    request.parameters["content_type"].string_param = "np"
    request.inputs[0].parameters["content_type"].string_param = "np"
    output = request.outputs.add(name="x")
    output.parameters["content_type"].string_param = "np"
    output.parameters["my_own"].bool_param = True
    async with running() as one, connected(one.address) as client, stub(one.address) as calls:
        answer = await client.infer("echo", [infer_input()], parameters={"temperature": 0.5, "user": "me"})
        np.testing.assert_array_equal(answer.as_numpy("x"), ROWS)
        assert (await calls.ModelInfer(request)).raw_output_contents == [ROWS.tobytes()]


async def test_parameters_that_would_change_the_answer_are_refused() -> None:
    classes = blocking_client.InferRequestedOutput("x", class_count=3)
    request = service_pb2.ModelInferRequest.FromString(good_request())
    request.inputs[0].parameters["content_type"].string_param = "base64"
    async with running() as one, connected(one.address) as client, stub(one.address) as calls:
        with pytest.raises(InferenceServerException, match="'sequence_end': this server keeps no sequences") as caught:
            await client.infer("echo", [infer_input()], sequence_id=3, sequence_start=True, sequence_end=True)
        assert says(caught.value)[0] == "UNIMPLEMENTED"
        with pytest.raises(InferenceServerException, match=r"output 'x' .*does not classify") as caught:
            await client.infer("echo", [infer_input()], outputs=[classes])
        assert says(caught.value)[0] == "UNIMPLEMENTED"
        with pytest.raises(grpc.aio.AioRpcError, match=r"input 'x' .*neither reads nor writes base64") as refused:
            await calls.ModelInfer(request)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_input_in_shared_memory_is_refused() -> None:
    given = infer_input()
    given.set_shared_memory("region", 32)
    async with running() as one, connected(one.address) as client:
        with pytest.raises(InferenceServerException, match=r"input 'x' .*has no shared memory") as caught:
            await client.infer("echo", [given])
    assert says(caught.value)[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize("name", NOT_SUPPORTED)
async def test_a_call_that_is_not_there_says_so(name: str) -> None:
    async with running() as one, stub(one.address) as calls:
        call = getattr(calls, name)
        if name == "ModelStreamInfer":
            waiting = call(iter([service_pb2.ModelInferRequest()])).read()
        else:
            waiting = call(getattr(service_pb2, f"{name}Request")())
        with pytest.raises(grpc.aio.AioRpcError, match=f"this server does not support {name}") as caught:
            await waiting
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_stock_client_reads_what_the_server_and_the_model_are() -> None:
    text = [spec("text", "BYTES", ("batch",))]
    vector = [spec("embedding", "FP32", ("batch", 384))]
    async with (
        running(served("minilm", inputs=text, outputs=vector), served()) as one,
        connected(one.address) as client,
    ):
        server = await client.get_server_metadata()
        assert server.name == "shardline"
        assert "statistics" in server.extensions
        metadata = await client.get_model_metadata("minilm", as_json=True)
        assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": ["-1"]}]
        assert metadata["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": ["-1", "384"]}]
        config = (await client.get_model_config("minilm")).config
        assert (config.max_batch_size, list(config.input[0].dims), list(config.output[0].dims)) == (16, [], [384])
        assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
        assert not config.model_transaction_policy.decoupled
        index = await client.get_model_repository_index()
        assert [(one.name, one.version, one.state) for one in index.models] == [
            ("echo", "1", "READY"),
            ("minilm", "1", "READY"),
        ]
        for ask in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
            with pytest.raises(InferenceServerException, match="Request for unknown model: 'nope'"):
                await ask("nope")


async def test_statistics_grow_with_what_is_answered_and_what_fails() -> None:
    async with running(served(), served("other")) as one, connected(one.address) as client:
        for _ in range(3):
            await client.infer("echo", [infer_input()])
        with pytest.raises(InferenceServerException):
            await client.infer("echo", [])
        (stats,) = (await client.get_inference_statistics("echo")).model_stats
        both = (await client.get_inference_statistics()).model_stats
    assert (stats.inference_count, stats.execution_count) == (6, 3)
    assert stats.last_inference > 1_600_000_000_000
    times = stats.inference_stats
    assert (times.success.count, times.fail.count) == (3, 1)
    assert (times.queue.count, times.queue.ns) == (3, 3000)
    assert (times.compute_infer.count, times.compute_infer.ns) == (3, 6000)
    assert min(times.success.ns, times.fail.ns, times.compute_input.ns, times.compute_output.ns) > 0
    assert [(one.name, one.inference_count) for one in both] == [("echo", 6), ("other", 0)]


async def test_a_worker_that_asks_for_another_token_is_never_called() -> None:
    async with running() as one, connected(one.address) as client:
        one.gateway.apply(table(model(replicas=[one.worker])), "another token")
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("echo", [infer_input()], client_timeout=0.5)
        assert says(caught.value)[0] in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
