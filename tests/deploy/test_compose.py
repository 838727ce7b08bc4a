"""compose.yaml, read for what keeps it safe and lets it come up."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import command_lines

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRETS = {"head": {"ray-token", "token", "key"}, "node": {"ray-token", "key"}, "gateway": {"token"}}


@pytest.fixture
def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return read


def test_its_services_are_hardened_as_the_pods_are(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        tag = service["image"].rpartition(":")[2]
        assert tag not in {"", "latest"}, name
        assert service["read_only"] is True, name
        assert service["user"] == "10001:10001", name
        assert service["cap_drop"] == ["ALL"], name
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        assert "stop_grace_period" in service, name


def test_its_image_is_built_from_the_repository(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        context = (DEPLOY / service["build"]["context"]).resolve()
        assert context / service["build"]["dockerfile"] == DEPLOY / "Containerfile", name


def test_each_service_gets_the_secrets_that_it_needs(compose: dict[str, Any]) -> None:
    assert {name: set(service["secrets"]) for name, service in compose["services"].items()} == SECRETS
    assert set().union(*SECRETS.values()) == set(compose["secrets"])
    ignored = (DEPLOY.parent / ".gitignore").read_text().split()
    for secret in compose["secrets"].values():
        assert f"/{Path(secret['file']).parent.name}/" in ignored
    for name in ("head", "node"):
        environment = compose["services"][name]["environment"]
        assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray-token"
        copied = ["-m", "600", "/run/secrets/key", environment["SHARDLINE_KEY_FILE"]]
        assert command_lines.find(compose["services"][name]["command"], "install") == copied


def test_its_programs_understand_their_arguments(compose: dict[str, Any]) -> None:
    head, node, gateway = (compose["services"][name]["command"] for name in ("head", "node", "gateway"))
    serve = command_lines.serve(command_lines.find(head, "shardline", "serve"))
    assert (serve.control_port, str(serve.token_file)) == (7700, "/run/secrets/token")
    first = command_lines.ray("start", command_lines.find(head, "ray", "start"))
    assert (first["head"], first["port"], serve.address) == (True, 6379, "$(hostname -i):6379")
    second = command_lines.ray("start", command_lines.find(node, "ray", "start"))
    assert (second["block"], second["address"]) == (True, "head:6379")
    assert second["object_store_memory"] == first["object_store_memory"] >= 75 * 2**20
    settings = command_lines.gateway(command_lines.find(gateway, "python", "-m", "gateway"))
    assert settings.listen.endswith(":" + compose["services"]["gateway"]["ports"][0].rpartition(":")[2])
    control = "".join(word for one in command_lines.of_container(gateway) if one[0] == "printf" for word in one)
    assert f"head:{serve.control_port}" in control


def test_the_state_dir_is_on_a_volume_that_the_image_gives_its_owner(compose: dict[str, Any]) -> None:
    head = compose["services"]["head"]
    state_dir = command_lines.serve(command_lines.find(head["command"], "shardline", "serve")).state_dir
    (volume,) = (one for one in head["volumes"] if one.partition(":")[0] in compose["volumes"])
    mounted = volume.split(":")[1]
    assert state_dir.is_relative_to(mounted)
    made = f"install --directory --owner=10001 --group=10001 --mode=700 {mounted}"
    assert made in (DEPLOY / "Containerfile").read_text(), "a fresh volume takes its owner from the image's folder"
