from pathlib import Path

import numpy as np

from compressor.package import package
from compressor.quantization.int8_static import Int8Static
from compressor.recipe_file import RecipeFile
from compressor.search.calibration import remove_unnamed
from tests import models
from worker.manifest import MANIFEST


def _calibration(path: Path) -> Path:
    ids = np.random.default_rng(0).integers(1, 50, (8, 7))
    np.savez(path, ids=ids, mask=np.ones_like(ids))
    return path


def test_a_calibration_file_goes_unless_the_recipe_of_a_version_names_it(tmp_path: Path) -> None:
    out = tmp_path / "m"
    named, other = _calibration(tmp_path / "calibration-a.npz"), _calibration(tmp_path / "calibration-b.npz")
    recipe = RecipeFile(steps=(Int8Static(layers=("qkv",)),), calibration=str(named))
    folder = package(models.attention(), out, compression=recipe, runtime="eager")
    package(models.attention(), out, runtime="eager")
    for path in (named, other):
        remove_unnamed(path, out)
    assert named.is_file()
    assert not other.exists()
    (folder / MANIFEST).write_text("damaged")
    remove_unnamed(named, out)
    assert named.is_file(), "what a damaged version names is not known"


def test_a_calibration_file_that_nothing_names_goes_and_may_be_gone(tmp_path: Path) -> None:
    path = _calibration(tmp_path / "calibration-a.npz")
    remove_unnamed(path, tmp_path / "m")
    assert not path.exists()
    remove_unnamed(path, tmp_path / "m")
