"""`shardline package`: makes an artifact, and beside it a `model.yaml` that serves it."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from shardline import exits
from shardline.progress import steps
from shardline.signals import sigterm_as_ctrl_c
from worker.model_yaml import ModelYaml, read_model_yaml, write_model_yaml


def run(
    source: str,
    out: Path,
    *,
    quantize: Literal["int8"] | None,
    stages: Sequence[int] | None,
    handler: str | None,
    device: str,
    runtime: Literal["fastest", "eager"],
) -> int:
    sys.path.insert(0, "")  # a factory may stand in the folder where the command is typed
    with _told_when_stopped(), steps(f"loading {source}") as begin:
        from compressor.package import package  # noqa: PLC0415 -- torch takes seconds
        from worker.artifact import read_manifest  # noqa: PLC0415

        folder = package(
            source,
            out,
            quantize=quantize,
            stages=stages,
            handler=handler,
            device=device,
            runtime=runtime,
            progress=begin,
        )
    served = ModelYaml(handler=read_manifest(folder).handler, stages=stages[0] if stages else 1, device=device)
    keep_or_write(out / "model.yaml", served)
    sys.stdout.write(f"{folder}\n")
    return exits.OK


def compile_version(folder: Path, device: str) -> int:
    with _told_when_stopped(), steps(f"loading {folder}") as begin:
        from compressor.package import compile_artifact  # noqa: PLC0415 -- torch takes seconds

        made = compile_artifact(folder, device=device, progress=begin)
    sys.stdout.write(f"{made}\n")
    return exits.OK


@contextmanager
def _told_when_stopped() -> Iterator[None]:
    """Says so where Ctrl-C or SIGTERM ends what is done meanwhile."""
    try:
        with sigterm_as_ctrl_c():
            yield
    except KeyboardInterrupt:
        sys.stderr.write("shardline: stopped; no artifact was written\n")
        raise


def keep_or_write(path: Path, model: ModelYaml) -> None:
    """Writes `model` where there is no file yet. A file that is there is the operator's: it is checked, and stays."""
    if path.exists():
        read_model_yaml(path)
    else:
        write_model_yaml(path, model)
