import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.worker.replicas import TOKEN, line_of, link_to
from worker.collate import to_tensors
from worker.errors import DeviceFailed
from worker.nouns import TensorSpec, Work

HOST = """
import asyncio, sys, torch
from worker.actor import WorkerActor, WorkerSpec

class DeviceFails:
    runtime = "eager"

    def __init__(self, shard):
        self.signature = shard.signature

    def run(self, inputs):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

async def main():
    spec = WorkerSpec("r", sys.argv[1], stage=0, stages=1, token=sys.argv[2], host="127.0.0.1")
    actor = WorkerActor(spec)
    print(await actor.start(), flush=True)
    actor._worker._shard = DeviceFails(actor._shard)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def hosted(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    hosting = [sys.executable, "-c", HOST, str(folder), TOKEN]
    with subprocess.Popen(hosting, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


async def test_a_worker_whose_device_has_failed_says_so_and_ends(toy_folder: Path) -> None:
    values = torch.ones((1, 4, 8))
    given = to_tensors([values, values], [TensorSpec(name, "", ()) for name in ("left", "right")])
    with hosted(toy_folder) as child:
        async with link_to(await line_of(child)) as link:
            with pytest.raises(DeviceFailed, match="the device failed while it computed this batch: CUDA error"):
                await link.call(Work(given, time.monotonic() + 30))
        assert await asyncio.to_thread(child.wait, 30) == 1
