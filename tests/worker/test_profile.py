"""`profile.json`: read back as written, and believed of its own artifact only."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cluster.planning.profiles import chain
from worker.artifact import ArtifactError, load_artifact
from worker.profile import artifact_key, read_profile, write_profile


@pytest.fixture
def version(toy_folder: Path, tmp_path: Path) -> Path:
    """An artifact with a profile that says it is of this artifact."""
    folder = tmp_path / "toy" / "1"
    shutil.copytree(toy_folder, folder)
    write_profile(folder, chain([1.0, 2.0]).model_copy(update={"artifact": artifact_key(folder)}))
    return folder


def test_a_profile_is_read_as_it_was_written_and_the_artifact_stays_sound(version: Path) -> None:
    assert read_profile(version).steps == ("step 0", "step 1")
    assert load_artifact(version).folder == version
    assert [path.name for path in version.parent.iterdir()] == ["1"]


def test_without_a_profile_the_command_that_makes_one_is_named(version: Path) -> None:
    (version / "profile.json").unlink()
    with pytest.raises(ArtifactError, match="is not profiled; `shardline profile"):
        read_profile(version)


def test_a_profile_of_another_artifact_is_refused(version: Path) -> None:
    write_profile(version, chain([1.0]))
    with pytest.raises(ArtifactError, match="of another artifact"):
        read_profile(version)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 2}, "format 2"),
        ({"cuts": [{"point": 9, "tensors": 1, "row_bytes": [{"length": 1, "nbytes": 1}]}]}, "ascending points"),
        ({"surprise": 1}, "surprise"),
        ({"weights": [{"nbytes": 1, "steps": [7]}]}, "a step outside"),
    ],
)
def test_a_damaged_profile_is_refused_and_the_field_named(version: Path, change: dict[str, object], told: str) -> None:
    path = version / "profile.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=told):
        read_profile(version)


def test_what_is_not_json_is_refused(version: Path) -> None:
    (version / "profile.json").write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        read_profile(version)
