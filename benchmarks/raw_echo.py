"""The ceiling: one hop of `grpc.aio` with uvloop that sends a request's bytes back unread. Prints its address."""

import asyncio

import grpc
import grpc.aio
import uvloop

SERVICE, _, METHOD = "inference.GRPCInferenceService/ModelInfer".partition("/")


async def echo(request: bytes, _: object) -> bytes:
    return request


async def main() -> None:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=options)
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
