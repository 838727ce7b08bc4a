"""One stage of an artifact, loaded and ready to compute."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from worker.archive import ProgramError
from worker.artifact import Artifact, ArtifactError
from worker.cut import cut, part, travel
from worker.cut_points import choose_points
from worker.errors import InvalidRequest, Unsupported
from worker.gpu import cannot_run
from worker.manifest import CompiledEntry, CutEntry, StageEntry
from worker.nouns import Signature
from worker.program import Program
from worker.pt2 import read_program
from worker.runtime import Aot, Eager, Passing, Runtime, check_device, instruction_set, keep_freed_memory
from worker.seal import DEFAULT_KEY, holds, located, read_key, seal
from worker.stages import axis_names, describe_stages

logger = logging.getLogger(__name__)

MEND = "`shardline compile` makes one for this machine"


class Shard:
    """A stage that computes. `runtime` is "eager" or "aotinductor"; `note` says why a compiled package is not used."""

    def __init__(
        self,
        stage: StageEntry,
        whole: Signature,
        runtime: Runtime,
        note: str = "",
        uncompiled: Callable[[], Runtime] | None = None,
    ) -> None:
        self.signature: Signature = Signature(
            tuple(entry.spec() for entry in stage.inputs), tuple(entry.spec() for entry in stage.outputs), whole.axes
        )
        self.runtime: str = runtime.name
        self.note = note
        self._runtime = runtime
        self._uncompiled = cache(uncompiled) if uncompiled else None
        self._passed = stage.passed

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The stage's outputs for its inputs, both in the signature's order; row-major, on the CPU.

        Raises:
            InvalidRequest: not as many tensors as the stage takes.
        """
        if len(inputs) != len(self.signature.inputs):
            raise InvalidRequest(f"{len(inputs)} tensors; the stage takes {len(self.signature.inputs)}")
        computed = iter(self._computed(inputs))
        return tuple(next(computed) if place is None else inputs[place] for place in self._passed)

    def _computed(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Sizes for which the compiled code does not hold (the compiler assumed that two of them differ, say) are
        computed uncompiled; the program is loaded when that first happens."""
        try:
            return self._runtime.run(inputs)
        except RuntimeError as error:
            if self._uncompiled is None:
                raise
            computed = self._uncompiled().run(inputs)
            shapes = [list(tensor.shape) for tensor in inputs]
            logger.info("%s was computed uncompiled: %s", shapes, str(error).strip().splitlines()[-1][:200])
            return computed


def load_shard(
    artifact: Artifact,
    *,
    stage: int,
    stages: int,
    device: str = "cpu",
    runtime: Literal["fastest", "eager"] = "fastest",
    key: Path = DEFAULT_KEY,
) -> Shard:
    """Stage `stage` (from 0) of `artifact` cut into `stages`.

    With runtime "fastest", the runtime that was measured to be the fastest is used where this machine can: a compiled
    package that was made for another instruction set, PyTorch or device, or that this machine's key does not vouch
    for, is left alone, and the stage runs uncompiled.

    Raises:
        ArtifactError: the program is not what the manifest says.
        InvalidRequest: there is no such stage, or the program cannot be cut into that many.
        Unsupported: there is no such device, or it cannot compute what is in the program.
    """
    if not 0 <= stage < stages:
        raise InvalidRequest(f"stage {stage} of {stages}: expected 0 to {stages - 1}")
    device = check_device(device)
    keep_freed_memory()
    packaged = artifact.manifest.cut_into(stages)
    note = ""
    if runtime == "fastest":
        if packaged is None:
            note = f"no package is compiled for {stages} stages; {MEND}"
        else:
            entry = packaged.stages[stage]
            compiled, note = _trusted(artifact, entry, device, key)
            if compiled is not None:
                try:
                    aot = Aot(artifact.folder / compiled.file, device)
                except (OSError, RuntimeError) as error:
                    note = f"{compiled.file} cannot be loaded here: {str(error).strip()[:300]}; {MEND}"
                else:
                    return Shard(
                        entry,
                        artifact.manifest.signature,
                        aot,
                        uncompiled=lambda: _eager(artifact, stage, stages, packaged, device)[0],
                    )
    loaded, entry = _eager(artifact, stage, stages, packaged, device)
    return Shard(entry, artifact.manifest.signature, loaded, note)


def load_stages(
    artifact: Artifact, *, stages: int, device: str = "cpu", key: Path = DEFAULT_KEY
) -> Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]:
    """All stages of `artifact` cut into `stages`, one after the other in this process: what the pipeline gives.

    Raises as `load_shard`.
    """
    shards = [load_shard(artifact, stage=stage, stages=stages, device=device, key=key) for stage in range(stages)]

    def run(inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        passing = tuple(inputs)
        for shard in shards:
            passing = shard.run(passing)
        return passing

    return run


def _eager(
    artifact: Artifact, stage: int, stages: int, packaged: CutEntry | None, device: str
) -> tuple[Runtime, StageEntry]:
    parts, entries = cut_program(artifact, load_program(artifact), stages, packaged)
    computed, _ = part(parts[stage])
    problem = cannot_run(computed, device) if device != "cpu" else None
    if problem:
        raise Unsupported(f"{artifact.folder}: {problem}")
    return Eager(computed.on(device), device) if computed.outputs else Passing(), entries[stage]


def load_program(artifact: Artifact) -> Program:
    """The artifact's program.

    Raises:
        ArtifactError: it cannot be read, or is not what the manifest describes.
    """
    try:
        program = read_program(artifact.program)
    except ProgramError as error:
        raise ArtifactError(f"{error}; package the model again") from error
    axis_names(program, artifact.manifest)
    return program


def cut_program(
    artifact: Artifact, program: Program, stages: int, packaged: CutEntry | None
) -> tuple[tuple[Program, ...], tuple[StageEntry, ...]]:
    """The program's stages: cut as packaged, or by the packaged step costs where that number of stages was not."""
    if packaged is not None:
        parts = cut(program, packaged.points)
        entries = describe_stages(program, parts, artifact.manifest)
        for found, entry in zip(entries, packaged.stages, strict=True):
            if [tensor.name for tensor in found.inputs] != [tensor.name for tensor in entry.inputs]:
                raise ArtifactError(f"{artifact.folder}: the packaged cut is not the program's; package it again")
        return parts, packaged.stages
    seconds = artifact.manifest.profile.seconds
    if len(seconds) != len(program.steps):
        raise ArtifactError(f"{artifact.folder}: the profile is of another program; package it again")
    points = choose_points(seconds, travel(program), stages)
    parts = cut(program, points)
    return parts, describe_stages(program, parts, artifact.manifest)


def _trusted(artifact: Artifact, entry: StageEntry, device: str, key: Path) -> tuple[CompiledEntry | None, str]:
    """The compiled package to use, or None and the reason."""
    if entry.runtime == "eager":
        computes = any(place is None for place in entry.passed)
        reason = "" if entry.figures or not computes else f"nothing is compiled for this stage; {MEND}"
        return None, reason
    kind = device.partition(":")[0]
    here = instruction_set(device)
    reason = f"no package is compiled for {kind}; {MEND}"
    for compiled in entry.compiled:
        if compiled.device != kind:
            continue
        if compiled.torch != torch.__version__:
            reason = f"{compiled.file} is compiled for PyTorch {compiled.torch}, this is {torch.__version__}; {MEND}"
        elif compiled.instruction_set != here:
            reason = f"{compiled.file} is compiled for {compiled.instruction_set}, this is {here}; {MEND}"
        else:
            reason = _seal_problem(artifact, compiled, key)
        if not reason:
            return compiled, ""
    return None, reason


def _seal_problem(artifact: Artifact, compiled: CompiledEntry, key: Path) -> str:
    try:
        secret = read_key(key)
    except Unsupported as error:
        return str(error)
    if secret is None:
        return f"{compiled.file} was compiled elsewhere: this machine has no key at {located(key)}; {MEND}"
    expected = seal(
        secret,
        sha256=artifact.manifest.files[compiled.file].sha256,
        device=compiled.device,
        instruction_set=compiled.instruction_set,
        torch=compiled.torch,
    )
    if not holds(compiled.seal, expected):
        return f"{compiled.file} was not compiled by this machine (its seal does not hold); {MEND}"
    return ""
