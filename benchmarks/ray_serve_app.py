"""The rival: Ray Serve behind its gRPC ingress, speaking the same protocol. Prints its address.

`identity`: one replica that sends its input back. `minilm`: what a user would write today, the fp32 model behind
`@serve.batch`, one replica per core with one thread each; on a GPU in fp16.
"""

import argparse
import logging
import signal
import socket
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.config import gRPCOptions

from protos import inference_pb2 as pb
from worker.cores import cores

SERVICER = "protos.inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"


def reply(
    request: pb.ModelInferRequest, name: str, datatype: str, value: np.ndarray[Any, Any] | bytes, shape: list[int]
) -> pb.ModelInferResponse:
    raw = value if isinstance(value, bytes) else value.tobytes()
    output = pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)
    return pb.ModelInferResponse(model_name=request.model_name, outputs=[output], raw_output_contents=[raw])


deployment: Any = serve.deployment(max_ongoing_requests=300)
batch: Any = serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005)


@deployment
class Identity:
    async def ModelInfer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:  # noqa: N802
        first = request.inputs[0]
        return reply(request, "y", first.datatype, request.raw_input_contents[0], list(first.shape))


@deployment
class MiniLM:
    """Pads a batch to its longest sentence; mean of the last hidden states, normalized."""

    def __init__(self, threads: int, device: str, rows: int) -> None:
        import torch

        from compressor.sources.huggingface import read_folder
        from shardline.demo import weights

        torch.set_num_threads(threads)
        self.torch = torch
        model = read_folder(weights()).module.eval()
        self.device = device
        self.model = model if device == "cpu" else model.half().to(device)
        self.embed.set_max_batch_size(rows)
        if device != "cpu":  # a GPU's first runs at each size take seconds
            with torch.inference_mode():
                for count in (1, 4, 16, rows):
                    for length in (16, 64, 128):
                        ones = torch.ones(count, length, dtype=torch.int64, device=device)
                        self.model(ones, ones).float().cpu()

    @batch  # type: ignore[untyped-decorator]
    async def embed(self, sentences: list[tuple[Any, Any]]) -> list[Any]:
        torch = self.torch
        longest = max(len(ids) for ids, _ in sentences)
        ids = torch.zeros(len(sentences), longest, dtype=torch.int64)
        mask = torch.zeros(len(sentences), longest, dtype=torch.int64)
        for row, (own_ids, own_mask) in enumerate(sentences):
            ids[row, : len(own_ids)] = torch.from_numpy(own_ids.copy())
            mask[row, : len(own_mask)] = torch.from_numpy(own_mask.copy())
        with torch.inference_mode():
            return list(self.model(ids.to(self.device), mask.to(self.device)).float().cpu().numpy())

    async def ModelInfer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:  # noqa: N802
        named = {
            tensor.name: np.frombuffer(raw, np.int64)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        vector = await self.embed((named["input_ids"], named["attention_mask"]))
        return reply(request, "embedding", "FP32", vector, [1, vector.shape[0]])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("app", choices=["identity", "minilm"])
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=16, help="of a batch, at most")
    given = parser.parse_args()
    ray.init(
        address="local", num_cpus=cores() + 2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    port, http_port = free_port(), free_port()
    serve.start(
        http_options={"host": "127.0.0.1", "port": http_port},
        grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[SERVICER]),
    )
    deployed: Any = Identity if given.app == "identity" else MiniLM
    app = deployed.options(num_replicas=given.replicas).bind(
        *([1, given.device, given.rows] if given.app == "minilm" else [])
    )
    serve.run(app, name="default", route_prefix="/")
    print(f"127.0.0.1:{port}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
