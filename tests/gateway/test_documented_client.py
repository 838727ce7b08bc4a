"""What docs/models.md tells a reader to run is answered."""

import asyncio
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.docs_tables import DOCS
from tests.gateway.backend import running, served, spec
from worker.nouns import Answer, Tensor, Timing, Work

PAGE = (DOCS / "models.md").read_text()
CLASSIFIER = served(
    "classifier",
    inputs=[spec("image", "FP32", ("batch", 3, 32, 32))],
    outputs=[spec("logits", "FP32", ("batch", 10))],
)


async def classify(work: Work) -> Answer:
    logits = Tensor("logits", "FP32", (work.rows, 10), bytes(40 * work.rows))
    return Answer((logits,), Timing(queue_ns=1000, compute_ns=2000, batch_rows=work.rows))


async def said(folder: Path, *command: str) -> str:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_the_client_gets_its_answer(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(# pip install.*?)```", PAGE, re.DOTALL)
    async with running(CLASSIFIER, serve=classify) as one:
        code = code.replace("127.0.0.1:8001", one.address)
        assert await said(tmp_path, "-c", f"{code}print(logits.shape)") == "(4, 10)\n"


async def test_the_command_line_gets_its_answer_for_the_file_that_is_made_for_it(tmp_path: Path) -> None:
    (make,) = re.findall(r"^python (-c '.*npz.*')$", PAGE, re.MULTILINE)
    (ask,) = re.findall(r"^shardline (infer .*--input .*)$", PAGE, re.MULTILINE)
    async with running(CLASSIFIER, serve=classify) as one:
        await said(tmp_path, *shlex.split(make))
        told = await said(tmp_path, "-m", "shardline.cli", *shlex.split(ask), "--url", one.address)
    assert "logits  float32[4, 10]" in told
