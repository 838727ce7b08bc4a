"""The manifests as `kubectl kustomize` makes them, checked offline, and read for what a cluster's keepers ask for."""

import copy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.kubernetes_schema import problems

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDERS = sorted(path.parent for path in (DEPLOY / "kubernetes").rglob("kustomization.yaml"))

Manifest = dict[str, Any]


def built(folder: Path) -> list[Manifest]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: it builds the manifests")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return built(request.param)


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The pods' specs, by who makes them."""
    for one in manifests:
        if one["kind"] == "Deployment":
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]
        elif one["kind"] == "RayCluster":
            yield "head", one["spec"]["headGroupSpec"]["template"]["spec"]
            for group in one["spec"]["workerGroupSpecs"]:
                yield group["groupName"], group["template"]["spec"]


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for pod, spec in pods(manifests):
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            yield f"{pod}/{container['name']}", container


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [one for one in manifests if one["kind"] == kind]


def test_every_manifest_is_what_kubernetes_and_kuberay_take(manifests: list[Manifest]) -> None:
    assert {one["kind"] for one in manifests} >= {"RayCluster", "Deployment", "Service", "PodDisruptionBudget"}
    assert [problem for one in manifests for problem in problems(one)] == []


@pytest.mark.parametrize(
    ("kind", "path", "value", "said"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0, "redinessProbe"), {}, "has no such field"),
        ("Deployment", ("spec", "replicas"), "two", "expected int"),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "minReplica"), 1, "has no such field"),
        ("RayCluster", ("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0, "expected str"),
        (
            "RayCluster",
            ("spec", "headGroupSpec", "template", "spec", "containers", 0, "resources", "limits"),
            {"memory": "4 GB"},
            "expected an amount",
        ),
        ("PodDisruptionBudget", ("spec", "maxUnavailble"), 1, "has no such field"),
    ],
)
def test_what_they_do_not_take_is_found(kind: str, path: tuple[str | int, ...], value: object, said: str) -> None:
    manifest = copy.deepcopy(of_kind(built(DEPLOY / "kubernetes" / "base"), kind)[0])
    place: Any = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert any(said in problem for problem in problems(manifest))


def test_what_is_missing_is_found() -> None:
    deployment = copy.deepcopy(of_kind(built(DEPLOY / "kubernetes" / "base"), "Deployment")[0])
    del deployment["spec"]["selector"]
    assert problems(deployment) == ["Deployment.spec.selector: missing"]


def test_images_are_named_by_version(manifests: list[Manifest]) -> None:
    for name, container in containers(manifests):
        _, _, tag = container["image"].rpartition("/")[2].partition(":")
        assert tag not in {"", "latest"}, name


def test_every_container_says_what_it_needs_and_may_take(manifests: list[Manifest]) -> None:
    for name, container in containers(manifests):
        resources = container["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"]), name
        assert "memory" in resources["limits"], name


def test_no_container_runs_as_root_or_can_become_more_than_it_is(manifests: list[Manifest]) -> None:
    for name, spec in pods(manifests):
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] >= 10000, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
    for name, container in containers(manifests):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name


def test_what_is_mounted_is_there_and_all_that_may_be_written_is_bounded(manifests: list[Manifest]) -> None:
    for name, spec in pods(manifests):
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert all("sizeLimit" in volume["emptyDir"] for volume in volumes.values() if "emptyDir" in volume), name
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes), name


def test_the_token_comes_from_a_secret_that_is_not_in_the_repository(manifests: list[Manifest]) -> None:
    assert not of_kind(manifests, "Secret")
    for name, container in containers(manifests):
        for variable in container.get("env", []):
            if variable["name"] == "RAY_AUTH_TOKEN":
                assert variable["valueFrom"]["secretKeyRef"] == {"name": "shardline-token", "key": "token"}, name


def test_a_gateway_is_asked_whether_it_is_ready_and_has_time_to_drain(manifests: list[Manifest]) -> None:
    (deployment,) = of_kind(manifests, "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    (gateway,) = spec["containers"]
    assert gateway["readinessProbe"]["grpc"] == {"port": 8001}
    assert "grpc" not in gateway["livenessProbe"], "a cluster without models is no reason to start gateways anew"
    notice, finish = (
        float(argument.partition("=")[2])
        for argument in gateway["args"]
        if argument.startswith(("--notice-s=", "--finish-s="))
    )
    pause = float(gateway["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert spec["terminationGracePeriodSeconds"] >= pause + notice + finish + 10
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_gateway_and_serve_understand_their_arguments(manifests: list[Manifest]) -> None:
    from gateway.__main__ import parse
    from shardline.cli import parser

    found = dict(containers(manifests))
    gateway = found["shardline-gateway/gateway"]["args"]
    assert gateway[:3] == ["python", "-m", "gateway"]
    settings, _ = parse(gateway[3:])
    assert settings.listen == "0.0.0.0:8001"
    serve = parser().parse_args(found["head/serve"]["args"][1:])
    assert (serve.control_port, str(serve.token_file)) == (7700, "/secret/token")


def test_budgets_and_services_select_pods_that_exist(manifests: list[Manifest]) -> None:
    labels = [
        {"app.kubernetes.io/name": "shardline-gateway"},
        {"ray.io/cluster": "shardline", "ray.io/node-type": "head"},
        {"ray.io/cluster": "shardline", "ray.io/node-type": "worker"},
    ]
    selectors = [one["spec"]["selector"] for one in of_kind(manifests, "Service")]
    budgets = [one["spec"]["selector"]["matchLabels"] for one in of_kind(manifests, "PodDisruptionBudget")]
    assert all(selector in labels for selector in selectors)
    assert all(wanted in budgets for wanted in labels)
    for one in of_kind(manifests, "Service"):
        wanted = {port["targetPort"] for port in one["spec"]["ports"]}
        ports = {
            name
            for _, container in containers(manifests)
            for port in container.get("ports", ())
            for name in (port["name"], port["containerPort"])
        }
        assert wanted <= ports, one["metadata"]["name"]


def test_compose_is_hardened_alike() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        tag = service["image"].rpartition(":")[2]
        assert tag not in {"", "latest"}, name
        assert service["read_only"] is True, name
        assert service["user"] == "10001:10001", name
        assert service["cap_drop"] == ["ALL"], name
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        assert "stop_grace_period" in service, name
        assert set(service["secrets"]) <= set(compose["secrets"]), name


def test_the_image_runs_as_nobody_special_and_is_built_from_pinned_ones() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert all(":" in base and not base.endswith(":latest") for base in bases)
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER 10001:10001"]
