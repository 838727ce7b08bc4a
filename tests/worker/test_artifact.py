"""Damaged and hostile artifacts are refused, by a message that names the file."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.artifact import ArtifactError, load_artifact, versions, write_artifact
from worker.manifest import MANIFEST, PROGRAM, Manifest


@pytest.fixture
def folder(toy_folder: Path, tmp_path: Path) -> Path:
    """A copy of a sound artifact."""
    return Path(shutil.copytree(toy_folder, tmp_path / "toy" / "1"))


def rewrite(folder: Path, change: Callable[[Any], None]) -> None:
    path = folder / MANIFEST
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_sound_artifact_loads(folder: Path) -> None:
    artifact = load_artifact(folder)
    assert artifact.program.is_file()
    assert [spec.name for spec in artifact.manifest.signature.inputs] == ["left", "right"]
    assert [spec.shape for spec in artifact.manifest.signature.outputs] == [("batch", 8), ("batch", "length", 8)]


def test_a_flipped_byte_is_refused(folder: Path) -> None:
    path = folder / PROGRAM
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"program\.pt2: its content is not what was packaged"):
        load_artifact(folder)


def test_a_truncated_program_is_refused(folder: Path) -> None:
    path = folder / PROGRAM
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"program\.pt2: \d+ bytes, the manifest says"):
        load_artifact(folder)


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / PROGRAM).unlink()
    with pytest.raises(ArtifactError, match=r"program\.pt2: missing"):
        load_artifact(folder)


def test_a_missing_manifest_is_refused(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"manifest\.json: missing"):
        load_artifact(folder)


def test_a_file_that_the_manifest_does_not_name_is_refused(folder: Path) -> None:
    (folder / "stages").mkdir(exist_ok=True)
    (folder / "stages" / "extra.pt2").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"extra\.pt2: not named"):
        load_artifact(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "stages/../../outside",
        "/etc/passwd",
        "handler/./a",
        "handler//a",
        "stages",
        "a.py",
        "handler\\..\\a",
        "",
    ],
)
def test_a_path_that_escapes_the_folder_is_refused(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    outside.write_bytes(b"")
    entry = {"sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "bytes": 0}
    rewrite(folder, lambda document: document["files"].update({name: entry}))
    with pytest.raises(ArtifactError, match="not a path inside the artifact"):
        load_artifact(folder)


def test_a_symbolic_link_is_refused(folder: Path) -> None:
    program = folder / PROGRAM
    program.rename(folder.parent / "elsewhere.pt2")
    program.symlink_to(folder.parent / "elsewhere.pt2")
    with pytest.raises(ArtifactError, match="symbolic link"):
        load_artifact(folder)


def test_a_linked_folder_is_refused(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a").write_bytes(b"")
    (folder / "handler").symlink_to(elsewhere)
    entry = {"sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "bytes": 0}
    rewrite(folder, lambda document: document["files"].update({"handler/a": entry}))
    with pytest.raises(ArtifactError, match="symbolic link"):
        load_artifact(folder)


def test_a_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / PROGRAM).unlink()
    (folder / PROGRAM).mkdir()
    with pytest.raises(ArtifactError, match="not a plain file"):
        load_artifact(folder)


def test_the_next_format_is_refused_and_says_what_to_do(folder: Path) -> None:
    rewrite(folder, lambda document: document.update(format=2, novelty=True))
    with pytest.raises(ArtifactError, match=r"format 2; this version of Shardline reads format 1: upgrade"):
        load_artifact(folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda document: document.update(novelty=1), "novelty"),
        (lambda document: document["inputs"][0].update(novelty=1), "inputs.0.novelty"),
        (lambda document: document["inputs"][0].update(datatype="FP31"), "FP31"),
        (lambda document: document["inputs"][0].update(shape=["batch", "__import__('os')"]), "not arithmetic"),
        (lambda document: document["inputs"][0].update(shape=["batch", "unknown", 8]), "not in axes"),
        (lambda document: document["inputs"][0].update(shape=[-1]), "negative"),
        (lambda document: document.update(inputs=[]), "inputs"),
        (lambda document: document.update(inputs=document["inputs"] * 2), "two entries"),
        (lambda document: document["files"].pop(PROGRAM), "missing"),
        (lambda document: document["files"][PROGRAM].update(sha256="xyz"), "sha256"),
        (lambda document: document["cuts"][0].update(points=[1, 2]), "stages"),
        (lambda document: document.update(handler="os.system('x')"), "handler"),
        (lambda document: document["axes"][0].update(maximum=0), "below minimum"),
    ],
)
def test_a_manifest_that_says_something_odd_is_refused(
    folder: Path, change: Callable[[Any], None], problem: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(ArtifactError, match=problem):
        load_artifact(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_not_one_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        load_artifact(folder)


def test_versions_are_numbered_on(folder: Path) -> None:
    model = folder.parent
    manifest = load_artifact(folder).manifest

    def fill(target: Path) -> Manifest:
        shutil.copy(folder / PROGRAM, target / PROGRAM)
        return manifest

    (model / "model.yaml").write_text("stages: 1\n")
    (model / "007").mkdir()
    assert write_artifact(model, fill) == model / "2"
    assert write_artifact(model, fill) == model / "3"
    assert versions(model) == (1, 2, 3)
    assert load_artifact(model / "3").manifest.files == manifest.files


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_half_way_leaves_nothing_behind(tmp_path: Path, failure: type[BaseException]) -> None:
    def fill(target: Path) -> Manifest:
        (target / PROGRAM).write_bytes(b"half")
        raise failure

    with pytest.raises(failure):
        write_artifact(tmp_path / "model", fill)
    assert not (tmp_path / "model").exists()


def test_a_writer_that_is_killed_leaves_no_version(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from worker.artifact import write_artifact\n"
        "def fill(target):\n"
        "    (target / 'program.pt2').write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_artifact(Path(sys.argv[1]), fill)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model")], cwd=root, env={**os.environ}, timeout=60, check=False
    )
    assert done.returncode == -9
    assert versions(tmp_path / "model") == ()


def test_what_a_killed_writer_left_is_removed_a_day_later(folder: Path) -> None:
    model = folder.parent
    fresh, old = model / ".packaging-fresh", model / ".packaging-old"
    for left in (fresh, old):
        left.mkdir()
        (left / PROGRAM).write_bytes(b"half")
    os.utime(old, (1, 1))

    def fill(target: Path) -> Manifest:
        shutil.copy(folder / PROGRAM, target / PROGRAM)
        return load_artifact(folder).manifest

    write_artifact(model, fill)
    assert fresh.exists()
    assert not old.exists()
