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
from worker.actor import WorkerActor, WorkerSpec
from worker.collate import to_tensors
from worker.errors import DeviceFailed
from worker.fetch import ArtifactSource
from worker.handler_code import HandlerCodeError, code_hash
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


def test_code_that_changes_while_it_is_imported_does_not_serve(tmp_path: Path) -> None:
    code = tmp_path / "a" / "code"
    code.mkdir(parents=True)
    (code / "changes_itself.py").write_text(
        "from pathlib import Path\n\n"
        "Path(__file__).with_name('more.txt').touch()\n\n\n"
        "class X:\n    signature = None\n\n    def __init__(self, assets): ...\n    before = after = __init__\n"
    )
    source = ArtifactSource("nowhere:1", "a", 1, code=code_hash(code.parent, "code"))
    folder, handler = str(code.parent / "1"), "changes_itself:X"
    actor = WorkerActor(WorkerSpec("r", folder, 0, 1, TOKEN, source=source, handler=handler, handler_code="code"))
    with actor._holds, pytest.raises(HandlerCodeError, match=f"^handler_code: {code} changed while it was imported"):
        actor._handler(tmp_path)
