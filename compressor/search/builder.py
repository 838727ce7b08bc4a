"""Makes the artifacts that a search proposes, beside its trials, and moves the chosen one to where it is served."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from compressor.model import Model
from compressor.package import package
from compressor.recipe import Recipe as Packaging
from compressor.recipe import find_packaged
from compressor.recipe_file import RecipeFile
from compressor.search.laboratory import Recipe
from compressor.search.store import key_of
from compressor.search.trial import Setting, fresh_model
from compressor.step import Training
from compressor.steps import described
from worker.artifact import NOT_WRITTEN, ArtifactError, load_artifact, write_artifact
from worker.errors import Internal, ShardlineError
from worker.manifest import Manifest
from worker.seal import DEFAULT_KEY

_FOLDER: Final = "artifacts"


@dataclass(frozen=True, slots=True)
class Builder:
    """work: the search's own folder. calibration: the file that steps which look at activations read. stages: to cut
    and compile for. training: what steps that train learn from; None: there is nothing. lessons: the same, where it was
    read already.
    """

    setting: Setting
    work: Path
    calibration: Path
    stages: tuple[int, ...]
    say: Callable[[str], None]
    training: str | None = None
    key: Path = DEFAULT_KEY
    lessons: Training | None = None

    def recipe(self, steps: Recipe) -> RecipeFile | None:
        """The steps as `shardline compress --recipe` takes them; None where there are none."""
        if not steps:
            return None
        needed = any(step.needs_calibration() for step in steps)
        return RecipeFile(
            steps=steps,
            seed=self.setting.seed,
            calibration=str(self.calibration) if needed else None,
            training=self.training if any(step.needs_training() for step in steps) else None,
        )

    def built(self, steps: Recipe, *, deadline: float | None = None) -> Path:
        """The artifact of a recipe, made where an interrupted search has not left it.

        deadline: by `time.monotonic()`, of its trainings; None: they take what they take.

        Raises:
            ShardlineError: it cannot be captured or compressed. DeadlineExceeded: a training did not end in time.
            OSError: there is no room.
        """
        out = self.work / _FOLDER / key_of(described(steps))
        recipe = self.recipe(steps)
        told = Packaging(
            self.setting.source,
            None,
            self.stages,
            self.setting.device,
            self.setting.runtime,
            compression=recipe,
        )
        found = find_packaged(out, told)
        if found is not None:
            return found
        source = self.setting.source
        try:
            return package(
                fresh_model(self.setting) if isinstance(source, Model) else source,
                out,
                compression=recipe,
                stages=self.stages,
                device=self.setting.device,
                runtime=self.setting.runtime,
                key=self.key,
                progress=self.say,
                deadline=deadline,
                training=self.lessons,
            )
        except ArtifactError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in NOT_WRITTEN:
                raise error.__cause__ from error  # no other treatment finds room either
            raise
        except (ShardlineError, OSError):
            raise
        except Exception as error:  # of torch, or of the model's own code: others may still be made
            raise Internal(f"it cannot be packaged: {type(error).__name__}: {error}") from error


def adopted(folder: Path, out: Path) -> Path:
    """The artifact in `folder` as the next version under `out`: all of it, or nothing."""
    manifest = load_artifact(folder).manifest

    def fill(target: Path) -> Manifest:
        for name in manifest.files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / name, target / name)
        return manifest

    return write_artifact(out, fill)
