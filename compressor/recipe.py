"""What is to be made: a source and what to do to it. Its key tells whether that has been made before."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch

from compressor.model import Model
from compressor.packaging.compile import compiler_problem
from compressor.quantization.formats import Int8Dynamic
from compressor.recipe_file import RecipeFile
from compressor.sources.sources import code_of, read_source, weights_digest
from worker.artifact import ArtifactError, read_manifest, versions
from worker.manifest import FORMAT, Manifest
from worker.runtime import check_device, instruction_set

_KEY_VERSION: Final = 6
"""Goes up when the same recipe would give another artifact."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The arguments of `compressor.package.package` that decide what comes out.

    Sources: see `compressor.sources.sources`.
    """

    source: str | Path | Model
    quantize: Literal["int8"] | None = None
    stages: tuple[int, ...] | None = None
    device: str = "cpu"
    runtime: Literal["fastest", "eager"] = "fastest"
    handler: str | None = None
    compression: RecipeFile | None = None

    @property
    def steps(self) -> RecipeFile | None:
        """The compression, however it was said."""
        return self.compression or (RecipeFile(steps=(Int8Dynamic(),)) if self.quantize == "int8" else None)

    @property
    def knows_its_data(self) -> bool:
        """Whether the key tells one content of the data from another: of files it does, of what functions give not."""
        places = (self.steps.calibration, self.steps.training) if self.steps else ()
        return all(place is None or _file_digest(place) is not None for place in places)

    def key(self, model: Model | None = None) -> str:
        """A hash of all that goes in: weights, the teacher's too, data files, and the code of functions that give data.

        `model`: the source's, where it is loaded already.
        """
        told = [
            _KEY_VERSION,
            FORMAT,
            torch.__version__,
            _identity(self.source, model),
            self.steps.model_dump(mode="json") if self.steps else None,
            _content(self.steps) if self.steps else None,
            self.stages,
            self.device.partition(":")[0],
            self.runtime,
            self.handler,
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def find_packaged(out: Path, recipe: Recipe) -> Path | None:
    """The newest version under `out` that this recipe gave, compiled for this machine where it can compile."""
    manifests: list[tuple[Path, Manifest]] = []
    for version in reversed(versions(out)):
        try:
            manifests.append((out / str(version), read_manifest(out / str(version))))
        except ArtifactError:
            continue  # a damaged version is not the one that is looked for
    if not manifests:
        return None
    key = recipe.key()
    made = [(folder, manifest) for folder, manifest in manifests if manifest.recipe.key == key]
    here = instruction_set(check_device(recipe.device))
    for folder, manifest in made:
        if recipe.runtime == "eager" or is_compiled(manifest, here):
            return folder
    return made[0][0] if made and compiler_problem() else None


def is_compiled(manifest: Manifest, instructions: str) -> bool:
    """Whether every stage has been measured, and has a package for these instructions where that was the fastest."""
    return all(
        all(place is not None for place in stage.passed)
        or (bool(stage.figures) and stage.runtime == "eager")
        or (
            stage.runtime == "aotinductor"
            and any(
                compiled.instruction_set == instructions and compiled.torch == torch.__version__
                for compiled in stage.compiled
            )
        )
        for cut in manifest.cuts
        for stage in cut.stages
    )


def _content(steps: RecipeFile) -> list[str]:
    """Hashes of what a recipe only names."""
    data = [place for place in (steps.calibration, steps.training) if place]
    found = [_file_digest(place) or hashlib.sha256(code_of(place).encode()).hexdigest() for place in data]
    return [*found, _identity(steps.teacher, None)] if steps.teacher else found


def _file_digest(place: str) -> str | None:
    """A hash of a data file; None where `place` is a function's name."""
    if not Path(place).is_file():
        return None
    with Path(place).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(source: str | Path | Model, model: Model | None) -> str:
    if isinstance(source, Model):
        return source.identity or _of_model(source)
    path = Path(source)
    if path.is_dir():
        from compressor.sources.huggingface import folder_identity  # noqa: PLC0415

        return folder_identity(path)
    if path.suffix == ".pt2" and path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    made = model or read_source(source)
    return f"{source} {made.identity or _of_model(made)}"


def _of_model(model: Model) -> str:
    """A hash of a module's weights, of the code of its classes, and of what is said of its inputs and outputs."""
    digest = hashlib.sha256(weights_digest(model.module).encode())
    for name in sorted({type(module).__module__ for module in model.module.modules()}):
        if not name.startswith("torch."):
            digest.update(code_of(name).encode())
    for item in model.inputs:
        told = [item.name, str(item.example.dtype), list(item.example.shape), item.axes, item.pad]
        digest.update(json.dumps(told).encode())
    axes = [(axis.name, axis.minimum, axis.maximum) for axis in model.axes]
    assets = {
        name: hashlib.sha256(asset if isinstance(asset, bytes) else asset.read_bytes()).hexdigest()
        for name, asset in model.assets.items()
    }
    digest.update(json.dumps([model.outputs, axes, model.handler, assets], sort_keys=True).encode())
    return digest.hexdigest()
