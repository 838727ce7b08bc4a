"""Makes an artifact of a source: compress, capture, measure, cut, compile, write."""

import math
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from compressor.capture import capture, outputs_of
from compressor.compress import Compression, compress_
from compressor.model import Model
from compressor.packaging.compile import compiler_problem
from compressor.packaging.describe import describe
from compressor.packaging.padding import padding_error, two_requests
from compressor.packaging.stage_runtime import SUFFIXES, choose_runtime, tolerance
from compressor.profiling.measure import cosine, example_inputs, measured_sizes, step_seconds, threads
from compressor.quantization.formats import Int8Dynamic
from compressor.quantization.int8_static import Int8Static
from compressor.quantization.quantize import int8_convolutions, int8_layers
from compressor.recipe import Recipe
from compressor.recipe_file import RecipeFile
from compressor.sources.sources import read_source
from compressor.step import Context, Training
from compressor.training.kept_trainings import KeptTrainings
from compressor.training.train import Trainer
from worker.artifact import file_entry, load_artifact, write_artifact
from worker.cut import cut, part, travel
from worker.cut_points import choose_points
from worker.errors import InvalidRequest, Unsupported
from worker.gpu import cannot_run
from worker.manifest import (
    PROGRAM,
    ChangeEntry,
    CompiledEntry,
    CompressionEntry,
    CutEntry,
    Manifest,
    ProfileEntry,
    RecipeEntry,
    StageEntry,
    TensorEntry,
)
from worker.program import Program
from worker.runtime import Eager, check_device, instruction_set
from worker.seal import DEFAULT_KEY, located, make_key, read_key, seal
from worker.shard import load_program
from worker.stages import axis_names, describe_stages

Progress = Callable[[str], None]
"""Told what begins now, in a few words."""


def package(
    source: str | Path | Model,
    out: Path,
    *,
    quantize: Literal["int8"] | None = None,
    compression: RecipeFile | None = None,
    context: Callable[[Model], Context] | None = None,
    stages: Sequence[int] | None = None,
    device: str = "cpu",
    runtime: Literal["fastest", "eager"] = "fastest",
    handler: str | None = None,
    key: Path = DEFAULT_KEY,
    progress: Progress = lambda _: None,
    deadline: float | None = None,
    workers: int | None = None,
    training: Training | None = None,
) -> Path:
    """Packages `source` as the next version under `out` (models/minilm) and returns its folder.

    A training on data from a file that is interrupted is kept under `out`, and goes on when the same is packaged again.

    Args:
        source: see `compressor.sources.sources`; a `Model`'s module is changed by compression.
        quantize: "int8": linear layers with 8-bit weights and activations; short for a recipe of that one step.
        compression: the steps that make it smaller and faster.
        context: gives what the steps may use; None: what `compression` names.
        stages: numbers of stages to cut and compile for; others can still be served, uncompiled. None: 1, and 2 where
            the program can be cut.
        runtime: "eager": compile nothing.
        handler: "module:Class"; None: the source's own.
        key: the machine's key, with which compiled packages are sealed; made where it is missing.
        progress: told of each long step.
        deadline: by `time.monotonic()`, of trainings in this process; None: they take what they take.
        workers: train on so many workers of the Ray cluster that this process has joined, all of which reach `out`;
            None: in this process.
        training: the data that `compression` names for it, where they were read already.

    Raises:
        DeadlineExceeded: a training did not end in time.
        ShardlineError: the source cannot be read, compressed or captured, or padding changes its answers.
    """
    device, key = check_device(device), located(key)
    if quantize and compression:
        raise InvalidRequest(f"quantize {quantize!r} is short for a recipe of one step; give one of the two")
    recipe = Recipe(source, quantize, tuple(stages) if stages else None, device, runtime, handler, compression)
    progress(f"loading {_name_of(source)}")
    model = source if isinstance(source, Model) else read_source(source)
    recipe_key = recipe.key(model)
    steps = recipe.steps
    lasting = context is None and recipe.knows_its_data
    trainings = KeptTrainings(out, recipe_key if lasting else secrets.token_hex(8), deadline)
    trainer = _trainer(trainings, workers, lasting=lasting)

    def fill(folder: Path) -> Manifest:
        examples = [item.example for item in model.inputs]
        exact = outputs_of(model) if steps else ()
        changed, done = model, None
        if steps:
            whole = replace(model, module=_in_a_parent(model.module))
            given = context(whole) if context else steps.context(whole, training)
            used = replace(given, target=device, say=progress)
            used = replace(used, trainer=used.trainer or trainer, device=device if context is None else used.device)
            try:
                done = compress_(whole.module, *steps.steps, context=used)
            finally:
                if not lasting or not trainings.any_kept():
                    trainings.forget()
            changed = replace(model, module=done.module)
        progress("capturing the program")
        program = capture(changed, folder / PROGRAM)
        layers = int8_layers(program) + int8_convolutions(program)
        if steps and any(isinstance(step, (Int8Dynamic, Int8Static)) for step in steps.steps) and not layers:
            raise InvalidRequest("nothing was quantized: no quantized layer's result is used by an output")
        told = RecipeEntry(
            source=_name_of(source),
            quantize=quantize,
            quantized_layers=layers,
            compression=_told(steps, done) if steps and done else None,
            cosine=_closeness(program, examples, exact) if steps else None,
            key=recipe_key,
            torch=torch.__version__,
        )
        for name, asset in model.assets.items():
            target = folder / "handler" / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(asset if isinstance(asset, bytes) else asset.read_bytes())
        manifest = describe(model, program, told, handler or model.handler)
        builder = _Builder(program, manifest, examples, folder, device, progress)
        return builder.build(stages, compiled=runtime == "fastest", key=key)

    folder = write_artifact(out, fill)
    trainings.forget()
    return folder


def _trainer(trainings: KeptTrainings, workers: int | None, *, lasting: bool) -> Trainer | None:
    """What runs the recipe's trainings; None: this process, for as long as it takes, and nothing is kept, since nothing
    could go on with it.
    """
    if workers is None:
        return trainings if lasting or trainings.seconds_left() is not None else None
    from compressor.training.train_ray import RayTrainer  # noqa: PLC0415 -- Ray takes a second

    return RayTrainer(workers, str(trainings.folder.resolve()), seconds=trainings.seconds_left())


def compile_artifact(
    folder: Path, *, device: str = "cpu", key: Path = DEFAULT_KEY, progress: Progress = lambda _: None
) -> Path:
    """Writes the next version of the artifact in `folder`: the same program, compiled for this machine.

    Packages for other machines are kept. For a version that came from elsewhere, was packaged without a compiler, or
    before an upgrade of PyTorch.

    Raises:
        ArtifactError: `folder` is not a sound artifact.
        Unsupported: there is no such device.
        InvalidRequest: there is no C++ compiler here.
    """
    device, key = check_device(device), located(key)
    problem = compiler_problem()
    if problem:
        raise InvalidRequest(problem)
    artifact = load_artifact(folder)
    program = load_program(artifact)

    def fill(target: Path) -> Manifest:
        for name in artifact.manifest.files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / name, target / name)
        builder = _Builder(program, artifact.manifest, (), target, device, progress)
        return builder.compiled(artifact.manifest, key)

    return write_artifact(folder.parent, fill)


@dataclass(frozen=True, slots=True)
class _Builder:
    """Fills an artifact's folder beyond the program itself."""

    program: Program
    manifest: Manifest
    examples: Sequence[torch.Tensor]
    folder: Path
    device: str
    progress: Progress

    def build(self, stages: Sequence[int] | None, *, compiled: bool, key: Path) -> Manifest:
        """The manifest with profile and cuts, and compiled packages where there is a compiler."""
        axes = axis_names(self.program, self.manifest)
        self._check_padding(self.program, axes, [entry.pad for entry in self.manifest.inputs])
        self.progress("measuring each step")
        sizes = measured_sizes(self.program, axes)[-1]
        with threads(1):
            seconds = step_seconds(self.program, example_inputs(self.program, sizes, self.examples))
        profile = ProfileEntry(sizes={axes[name]: size for name, size in sizes.items()}, device="cpu", seconds=seconds)
        crossing = travel(self.program)
        most = 1 + sum(item is not None for item in crossing)
        cuts = tuple(
            self._cut(choose_points(seconds, crossing, count), axes)
            for count in dict.fromkeys(stages or range(1, min(2, most) + 1))
        )
        manifest = self.manifest.model_copy(update={"profile": profile, "cuts": cuts})
        problem = compiler_problem() if compiled else ""
        if problem:
            self.progress(f"{problem}; the model is packaged uncompiled")
        return self.compiled(manifest, key) if compiled and not problem else manifest

    def compiled(self, manifest: Manifest, key: Path) -> Manifest:
        """The manifest with every stage of every cut compiled and measured on this device.

        Raises:
            Unsupported: the device cannot compute what is in the program.
        """
        problem = cannot_run(self.program, self.device) if self.device != "cpu" else None
        if problem:
            raise Unsupported(problem)
        secret = read_key(key) or make_key(key)
        (self.folder / "stages").mkdir(exist_ok=True)
        cuts = []
        for entry in manifest.cuts:
            inputs = self._program_inputs()
            made: list[StageEntry] = []
            for index, stage in enumerate(cut(self.program, entry.points)):
                self.progress(f"compiling stage {index + 1} of {len(entry.stages)}")
                made.append(
                    self._compiled_stage(
                        stage, entry.stages[index], inputs, place=(index, len(entry.stages)), secret=secret
                    )
                )
                runner = Eager(stage.on(self.device), self.device)
                inputs = {label: runner.run(tensors) for label, tensors in inputs.items()}
            cuts.append(CutEntry(points=entry.points, stages=tuple(made)))
        return manifest.model_copy(update={"cuts": tuple(cuts)})

    def _program_inputs(self) -> dict[str, Sequence[torch.Tensor]]:
        axes = axis_names(self.program, self.manifest)
        return {
            " ".join(f"{axes[name]}={size}" for name, size in sizes.items()) or "fixed": example_inputs(
                self.program, sizes, self.examples
            )
            for sizes in measured_sizes(self.program, axes)
        }

    def _cut(self, points: tuple[int, ...], axes: Mapping[str, str]) -> CutEntry:
        """The cut's description; tensors inside the model are padded where trying shows that it does no harm."""
        stages = cut(self.program, points)
        plain = describe_stages(self.program, stages, self.manifest)
        padded = tuple(entry for entry in self.manifest.inputs if _varies(entry))
        if len(stages) == 1 or not padded or any(entry.pad is None for entry in padded):
            return CutEntry(points=points, stages=plain)
        arriving = two_requests(self.program, axes, self.examples)
        harmless: dict[str, bool | int | float] = {}
        for stage, entry in zip(stages, plain, strict=True):
            fills = [
                item.pad if item.pad is not None or not _varies(item) else (False if item.datatype == "BOOL" else 0)
                for item in entry.inputs
            ]
            if padding_error(stage, axes, fills, arriving) <= tolerance(stage):
                harmless |= {
                    name: fill
                    for name, fill, item in zip(stage.inputs, fills, entry.inputs, strict=True)
                    if fill is not None and _varies(item)
                }
            runner = Eager(stage)
            arriving = [(runner.run(inputs), sizes) for inputs, sizes in arriving]
        return CutEntry(points=points, stages=describe_stages(self.program, stages, self.manifest, harmless))

    def _check_padding(
        self, program: Program, axes: Mapping[str, str], pads: Sequence[bool | int | float | None]
    ) -> None:
        varying = [entry for entry in self.manifest.inputs if _varies(entry)]
        if not varying or any(entry.pad is None for entry in varying):
            return
        error = padding_error(program, axes, pads, two_requests(program, axes, self.examples))
        if error > tolerance(program):
            names = ", ".join(f"{entry.name!r} with {entry.pad}" for entry in varying)
            raise InvalidRequest(
                f"padding {names} changes the answers (by {error:.2g} of their size): give the input that masks the "
                "padding a pad value of 0, or leave `pad` out so that only requests of one length are put together"
            )

    def _compiled_stage(
        self,
        stage: Program,
        entry: StageEntry,
        inputs: Mapping[str, Sequence[torch.Tensor]],
        *,
        place: tuple[int, int],
        secret: bytes,
    ) -> StageEntry:
        """`place`: the stage's index, and of how many stages it is."""
        index, count = place
        computed, _ = part(stage)
        if not computed.outputs:
            return entry
        instructions = instruction_set(self.device)
        kind = self.device.partition(":")[0]
        label = f"{count}-{index}-{kind}-{instructions.replace(' ', '-')}-{torch.__version__}"
        for suffix in SUFFIXES:
            (self.folder / "stages" / f"{label}{suffix}.pt2").unlink(missing_ok=True)
        chosen = choose_runtime(computed, inputs, self.folder / "stages", label, device=self.device)
        if chosen.problem:
            self.progress(f"stage {index + 1} of {count} stays uncompiled in one way: {chosen.problem.splitlines()[0]}")
        others = tuple(
            one
            for one in entry.compiled
            if (one.device, one.instruction_set, one.torch) != (kind, instructions, torch.__version__)
        )
        mine: tuple[CompiledEntry, ...] = ()
        if chosen.package is not None:
            sealed = seal(
                secret,
                sha256=file_entry(chosen.package).sha256,
                device=kind,
                instruction_set=instructions,
                torch=torch.__version__,
            )
            mine = (
                CompiledEntry(
                    file=f"stages/{chosen.package.name}",
                    device=kind,  # type: ignore[arg-type]
                    instruction_set=instructions,
                    torch=torch.__version__,
                    seal=sealed,
                ),
            )
        return entry.model_copy(
            update={
                "runtime": "aotinductor" if mine else "eager",
                "compiled": (*others, *mine),
                "figures": chosen.figures,
            }
        )


def _varies(entry: TensorEntry) -> bool:
    """Whether requests of different lengths need padding in this tensor."""
    return any(isinstance(size, str) for size in entry.shape[1:])


def _in_a_parent(module: torch.nn.Module) -> torch.nn.Module:
    """The module, within another where it is a layer itself: steps change what a module holds."""
    return module if any(True for _ in module.children()) else torch.nn.Sequential(module)


def _told(recipe: RecipeFile, done: Compression) -> CompressionEntry:
    said = recipe.model_copy(update={"steps": tuple(one.step for one in done.done)}).model_dump(mode="json")
    changes = tuple(
        tuple(ChangeEntry(layer=one.layer, what=one.what, before=one.before, after=one.after) for one in step.changes)
        for step in done.done
    )
    return CompressionEntry(**said, changes=changes)


def _name_of(source: str | Path | Model) -> str:
    return type(source.module).__name__ if isinstance(source, Model) else str(source)


def _closeness(program: Program, examples: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """The least mean cosine of an output to that of the model before compression, on the examples.

    Raises:
        InvalidRequest: the compressed model gives what is not a number, or outputs of other shapes.
    """
    found = Eager(program).run(examples)
    for a, b in zip(found, exact, strict=True):
        if a.shape != b.shape:
            raise InvalidRequest(f"the compressed model gives {list(a.shape)} where it gave {list(b.shape)}")
    least = min(cosine(a, b) for a, b in zip(found, exact, strict=True))
    if not math.isfinite(least):
        raise InvalidRequest("the compressed model gives what is not a finite number")
    return least
