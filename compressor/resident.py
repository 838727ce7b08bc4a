"""How much memory a model takes: measured in a process of its own, which loads it and runs it once."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import torch

from worker.errors import Internal

WITHIN_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Resident:
    """Bytes that a process grew by. loaded: by loading the shard. ran: by loading it and running one batch."""

    loaded: int
    ran: int


def resident_bytes(artifact: Path, rows: int, length: int, *, device: str = "cpu") -> Resident:
    """What a worker's process grows by when it loads the artifact's one stage and computes one batch.

    Args:
        rows, length: of the batch; sizes of the batch axis and of every other.

    Raises:
        Internal: the process failed, or took over `WITHIN_S` seconds.
    """
    command = [sys.executable, "-m", "compressor.resident", str(artifact), str(rows), str(length), device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Internal(f"{artifact}: measuring its memory took over {WITHIN_S:g} s") from error
    if done.returncode:
        raise Internal(f"{artifact}: measuring its memory failed: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Resident(int(found["loaded"]), int(found["ran"]))


def signature_inputs(artifact: Path, sizes: Mapping[str, int], other: int) -> tuple[torch.Tensor, ...]:
    """Ones, in the types and shapes that the artifact takes. `other`: the size of axes that `sizes` does not name."""
    from worker.artifact import read_manifest  # noqa: PLC0415 (before torch's own memory is counted, nothing else)
    from worker.expression import evaluate, parse, symbols  # noqa: PLC0415
    from worker.program import DATATYPES  # noqa: PLC0415

    types = {name: dtype for dtype, name in DATATYPES.items()}
    manifest = read_manifest(artifact)
    bounds = {axis.name: axis for axis in manifest.axes}
    made = []
    for entry in manifest.inputs:
        shape = []
        for size in entry.shape:
            if isinstance(size, int):
                shape.append(size)
                continue
            parsed = parse(size)
            known = {}
            for name in symbols(parsed):
                wanted, axis = sizes.get(name, other), bounds[name]
                known[name] = max(axis.minimum, min(wanted, axis.maximum or wanted))
            shape.append(int(evaluate(parsed, known)))
        made.append(torch.ones(shape, dtype=types[entry.datatype]))
    return tuple(made)


def _main(artifact: Path, rows: int, length: int, device: str) -> None:
    from worker.artifact import load_artifact  # noqa: PLC0415
    from worker.nouns import BATCH  # noqa: PLC0415
    from worker.shard import load_shard  # noqa: PLC0415

    torch.set_num_threads(1)
    inputs = signature_inputs(artifact, {BATCH: rows}, length)
    torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2))
    process = psutil.Process()
    before = process.memory_info().rss
    shard = load_shard(load_artifact(artifact), stage=0, stages=1, device=device)
    loaded = process.memory_info().rss
    shard.run(inputs)
    ran = process.memory_info().rss
    sys.stdout.write(json.dumps({"loaded": loaded - before, "ran": ran - before}) + "\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
