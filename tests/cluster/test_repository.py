import shutil
from pathlib import Path

import pytest

from cluster.repository import RepositoryError, changes, read_repository, with_signatures
from worker.yaml_lines import ModelYamlError


def a_model(folder: Path, *versions: int, yaml: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    for version in versions:
        (folder / str(version)).mkdir(parents=True)
    (folder / "model.yaml").write_text(yaml)
    return folder


def test_the_newest_version_is_served_unless_the_model_says_otherwise(tmp_path: Path) -> None:
    a_model(tmp_path / "a", 1, 2, 10)
    a_model(tmp_path / "b", 1, 2, 10, yaml="{versions: [2, 1], stages: 2, replicas: [3, 1]}")
    models = read_repository(tmp_path)
    assert models["a"].replicas == {10: (1,)}
    assert models["b"].replicas == {1: (3, 1), 2: (3, 1)}


def test_what_is_no_model_is_left_alone(tmp_path: Path) -> None:
    a_model(tmp_path / "a", 1)
    (tmp_path / "README.md").write_text("")
    (tmp_path / "notes").mkdir()
    a_model(tmp_path / ".packaging-x", 1)
    (tmp_path / "a" / ".packaging-y").mkdir()
    (tmp_path / "a" / "01").mkdir()
    assert {name: list(model.replicas) for name, model in read_repository(tmp_path).items()} == {"a": [1]}


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_without_models_says_how_to_make_one(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "models"
    if there:
        folder.mkdir()
    with pytest.raises(RepositoryError, match=rf"{folder}: no .*`shardline package SOURCE --out {folder}/NAME`"):
        read_repository(folder)


def test_a_model_without_model_yaml_or_without_versions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "1").mkdir(parents=True)
    with pytest.raises(ModelYamlError, match="an empty file is enough"):
        read_repository(tmp_path)
    (tmp_path / "a" / "model.yaml").touch()
    (tmp_path / "a" / "1").rmdir()
    with pytest.raises(RepositoryError, match="has no version, such as"):
        read_repository(tmp_path)


def test_a_version_that_is_not_there_is_refused(tmp_path: Path) -> None:
    a_model(tmp_path / "a", 1, 2, yaml="versions: [1, 3]")
    with pytest.raises(RepositoryError, match=r"a/model\.yaml: versions: there is no version 3, only \[1, 2\]"):
        read_repository(tmp_path)


@pytest.mark.parametrize("name", ["-a", "a b", "é", "a" * 129])
def test_a_name_that_cannot_be_a_models_is_refused(tmp_path: Path, name: str) -> None:
    a_model(tmp_path / name, 1)
    with pytest.raises(RepositoryError, match="rename the folder"):
        read_repository(tmp_path)


def test_what_changes_while_serving_is_noticed(tmp_path: Path) -> None:
    a_model(tmp_path / "a", 1)
    a_model(tmp_path / "b", 1)
    served = read_repository(tmp_path)
    assert changes(tmp_path, served) == []
    (tmp_path / "a" / "2").mkdir()
    a_model(tmp_path / "c", 1)
    (tmp_path / "b" / "model.yaml").write_text("drain_s: 3")
    assert changes(tmp_path, served) == [
        f"{tmp_path}/c appeared; `shardline rollout c` serves it",
        f"{tmp_path}/a/2 appeared; version 1 is served until `shardline rollout a`",
        f"{tmp_path}/b/model.yaml changed; `shardline rollout b` takes it",
    ]


def test_a_file_that_became_unreadable_is_a_change_and_ends_nothing(tmp_path: Path) -> None:
    a_model(tmp_path / "a", 1)
    served = read_repository(tmp_path)
    (tmp_path / "a" / "model.yaml").write_text("stagess: 2")
    (change,) = changes(tmp_path, served)
    assert change.startswith(f"{tmp_path}/a/model.yaml:1: stagess: unknown key")


def test_code_that_changes_while_serving_is_noticed_and_ends_nothing(tmp_path: Path) -> None:
    model = a_model(tmp_path / "a", 1, yaml="{handler: 'words:Words', handler_code: code}")
    (model / "code").mkdir()
    (model / "code" / "words.py").write_text("one = 1")
    served = read_repository(tmp_path)
    assert changes(tmp_path, served) == []
    (model / "code" / "words.py").write_text("one = 2")
    assert changes(tmp_path, served) == [f"{model}/code changed; `shardline rollout a` takes it"]
    (model / "code" / "words.py").unlink()
    (model / "code").rmdir()
    (change,) = changes(tmp_path, served)
    assert change.startswith(f"{model}/model.yaml: handler_code: expected the folder {model}/code with the handler's")


def test_models_may_have_modules_of_the_same_name(tmp_path: Path, toy_folder: Path) -> None:
    for name in ("a", "b"):
        model = a_model(tmp_path / name, yaml="{handler: 'same_name_in_both:Named', handler_code: code}")
        shutil.copytree(toy_folder, model / "1")
        (model / "code").mkdir()
        (model / "code" / "same_name_in_both.py").write_text(
            "from worker.nouns import Signature, TensorSpec\n\n\nclass Named:\n"
            f"    signature = Signature((TensorSpec('{name}', 'FP32', ('batch',)),), ())\n\n"
            "    def __init__(self, assets): ...\n    before = after = __init__\n"
        )
    models = with_signatures(tmp_path, read_repository(tmp_path))
    assert [model.signatures[1].inputs[0].name for model in models.values()] == ["a", "b"]
