"""The manifests, built and checked offline, and read for what KubeRay, Ray and a cluster's keepers ask for."""

import copy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.control_file import read_control_file
from tests.deploy import command_lines
from tests.deploy.kubernetes_schema import problems
from tests.deploy.kustomization import Manifest, build
from worker.seal import read_key

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
BASE = KUBERNETES / "base"
FOLDERS = sorted(path.parent for path in KUBERNETES.rglob("kustomization.yaml"))
FREE_PORTS = (32768, 60999)
"""From which Linux takes a port where a program asks for any."""
RAY_FOLDER = "/tmp/ray"  # noqa: S108 -- Ray's own default
RAY_PORTS = ("node_manager_port", "object_manager_port", "runtime_env_agent_port", "dashboard_agent_grpc_port")
"""Those that Ray would take from there by itself."""
SECRETS = {"shardline-gateway": {"shardline-token"}, "head": {"shardline-ray", "shardline-token"}}
"""What each pod may know; workers: Ray's token and the key of compiled packages."""


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return build(request.param)


@pytest.fixture
def cluster(manifests: list[Manifest]) -> Manifest:
    (found,) = of_kind(manifests, "RayCluster")
    return found


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


def ray_groups(cluster: Manifest) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Each group of Ray's nodes with its pod's spec; Ray runs in the first container."""
    head = cluster["spec"]["headGroupSpec"]
    yield "head", head, head["template"]["spec"]
    for group in cluster["spec"]["workerGroupSpecs"]:
        yield group["groupName"], group, group["template"]["spec"]


def variables(container: Manifest) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container.get("env", ())}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: it would build them too")
def test_kubectl_builds_the_same(folder: Path) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    def named(one: Manifest) -> tuple[str, str]:
        return one["kind"], one["metadata"]["name"]

    assert sorted(build(folder), key=named) == sorted(yaml.safe_load_all(done.stdout), key=named)


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
        ("RayCluster", ("metadata", "name"), "s" * 54, "expected a DNS label"),
        ("RayCluster", ("spec", "autoscalerOptions", "version"), "v3", "expected one of v1, v2"),
        ("RayCluster", ("spec", "headGroupSpec", "rayStartParams", "labels"), "kind=head", "`labels` are for that"),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "rayStartParams", "labels"), "kind=cpu", "labels: refused"),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "labels", "kind"), "a kind", "expected a label"),
        ("RayCluster", ("spec", "headGroupSpec", "resources"), {"CPU": "0"}, "refused beside resources"),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "maxReplicas"), 1, "expected 0 to maxReplicas"),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "suspend"), True, "suspend: refused"),
        (
            "RayCluster",
            ("spec", "workerGroupSpecs", 0, "template", "spec", "restartPolicy"),
            "Always",
            "expected Never or nothing",
        ),
        (
            "RayCluster",
            ("spec", "headGroupSpec", "template", "spec", "containers", 0, "env"),
            [{"name": "RAY_enable_autoscaler_v2", "value": "1"}],
            "in the head's environment is refused",
        ),
    ],
)
def test_what_they_do_not_take_is_found(kind: str, path: tuple[str | int, ...], value: object, said: str) -> None:
    manifest = copy.deepcopy(of_kind(build(BASE), kind)[0])
    place: Any = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert any(said in problem for problem in problems(manifest))


def test_what_is_missing_is_found() -> None:
    deployment = copy.deepcopy(of_kind(build(BASE), "Deployment")[0])
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


def test_each_pod_gets_the_secrets_that_it_needs_and_the_repository_holds_none(manifests: list[Manifest]) -> None:
    assert not of_kind(manifests, "Secret")
    for name, spec in pods(manifests):
        mounted = {one["secret"]["secretName"] for one in spec["volumes"] if "secret" in one}
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            for variable in container.get("env", ()):
                mounted |= {variable.get("valueFrom", {}).get("secretKeyRef", {}).get("name", "")} - {""}
        assert mounted == SECRETS.get(name, {"shardline-ray", "shardline-key"}), name


def test_the_autoscaler_and_all_that_join_ray_ask_for_its_token(manifests: list[Manifest], cluster: Manifest) -> None:
    token = {"secretKeyRef": {"name": "shardline-ray", "key": "token"}}
    of_ray = [found for name, found in containers(manifests) if "shardline-gateway" not in name]
    for one in [cluster["spec"]["autoscalerOptions"], *of_ray]:
        if one.get("name") == "key":
            continue
        environment = {variable["name"]: variable for variable in one["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        assert environment["RAY_AUTH_TOKEN"]["valueFrom"] == token


def test_rays_nodes_are_asked_how_they_are_by_what_the_image_has(cluster: Manifest) -> None:
    """KubeRay puts probes of Ray's dashboard wherever one is missing, and the image has no dashboard."""
    for name, group, spec in ray_groups(cluster):
        port = 6379 if name == "head" else int(group["rayStartParams"]["node-manager-port"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert spec["containers"][0][probe]["grpc"] == {"port": port}, f"{name}: {probe}"


def test_ray_understands_how_it_is_started(cluster: Manifest) -> None:
    for name, group, _ in ray_groups(cluster):
        words = command_lines.kuberays_ray_start(group["rayStartParams"], head=name == "head")
        understood = command_lines.ray("start", words)
        assert understood["object_store_memory"] >= 75 * 2**20, f"{name}: less than Ray takes"
        assert understood["block"] is True
        assert understood["num_cpus"] == (0 if name == "head" else None)


def test_rays_autoscaler_knows_each_kind_of_node(cluster: Manifest) -> None:
    from ray.autoscaler._private.kuberay import autoscaling_config

    read: Any = autoscaling_config._derive_autoscaling_config_from_ray_cr
    kinds = read(cluster)["available_node_types"]
    assert kinds["headgroup"]["resources"]["CPU"] == 0
    assert (kinds["cpu"]["labels"], kinds["cpu"]["resources"]["CPU"]) == ({"kind": "cpu"}, 4)
    if "gpu" in kinds:
        assert (kinds["gpu"]["labels"], kinds["gpu"]["resources"]["GPU"]) == ({"kind": "gpu"}, 1)
        assert (kinds["gpu"]["min_workers"], kinds["gpu"]["max_workers"]) == (0, 4)


def test_serve_reaches_ray_from_a_container_of_its_own(cluster: Manifest) -> None:
    spec = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    assert spec["shareProcessNamespace"] is True, "Ray finds its node by its processes"
    (serve,) = (one for one in spec["initContainers"] if one["name"] == "serve")
    assert serve["restartPolicy"] == "Always", "with autoscaler v2 nothing else of the pod is started again"
    assert "startupProbe" not in serve, "Ray would wait for it, and it for Ray"
    for one in (serve, spec["containers"][0], cluster["spec"]["autoscalerOptions"]):
        mounts = {mount["mountPath"]: mount["name"] for mount in one["volumeMounts"]}
        assert mounts[RAY_FOLDER] == "ray", "its sockets lie there, and KubeRay mounts another volume where none is"
        assert mounts[str(Path(RAY_FOLDER).parent)] == "tmp"
    waits, starts = (one for one in command_lines.of_container(serve["args"]) if one[0] in {"ray", "shardline"})
    assert waits[:2] == ["ray", "health-check"]
    address = command_lines.ray("health-check", waits[2:])["address"]
    assert starts[:2] == ["shardline", "serve"]
    assert command_lines.serve(starts[2:]).address == address == "$POD_IP:6379"
    (ip,) = (variable for variable in serve["env"] if variable["name"] == "POD_IP")
    assert ip["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}


def test_a_node_that_is_to_end_has_time_to_drain(cluster: Manifest) -> None:
    for name, _, spec in ray_groups(cluster):
        drains_s = float(variables(spec["containers"][0])["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert spec["terminationGracePeriodSeconds"] >= drains_s + 20, name
        assert (drains_s == 0) == (name == "head"), "nothing can take the head's place"


def run_script(container: Manifest, tmp_path: Path) -> None:
    """The container's script, with what is mounted at /NAME in `tmp_path`/NAME."""
    shell, option, script = container["command"]
    for mount in container["volumeMounts"]:
        script = script.replace(f"{mount['mountPath']}/", f"{tmp_path}{mount['mountPath']}/")
        (tmp_path / mount["mountPath"].lstrip("/")).mkdir(exist_ok=True)
    subprocess.run([shell, option, script], check=True, timeout=10, umask=0o022)


def test_a_gateway_reads_the_control_file_that_is_written_for_it(manifests: list[Manifest], tmp_path: Path) -> None:
    found = dict(containers(manifests))
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "token").write_text("0123456789abcdef\n")
    run_script(found["shardline-gateway/control-file"], tmp_path)
    control = read_control_file(tmp_path / "control" / "control.json")
    assert (control.address, control.token) == ("shardline-controller:7700", "0123456789abcdef")
    (service,) = (one for one in of_kind(manifests, "Service") if one["metadata"]["name"] == "shardline-controller")
    assert [port["port"] for port in service["spec"]["ports"]] == [7700]


def test_a_worker_finds_the_machines_key(cluster: Manifest, tmp_path: Path) -> None:
    for name, _, spec in ray_groups(cluster):
        if name == "head":
            continue
        (init,) = spec["initContainers"]
        target = variables(spec["containers"][0])["SHARDLINE_KEY_FILE"]
        assert target.startswith("/key/")
        copy_of_it, secret_key = tmp_path / target.lstrip("/"), tmp_path / "secret" / "key"
        run_script(init, tmp_path)
        assert read_key(copy_of_it) is None, "a cluster without the Secret starts"
        secret_key.write_bytes(bytes(range(32)))
        secret_key.chmod(0o644)
        run_script(init, tmp_path)
        assert read_key(copy_of_it) == bytes(range(32))
        secret_key.unlink()
        copy_of_it.unlink()
        for container in (init, spec["containers"][0]):
            assert {"/key": "key"}.items() <= {
                mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]
            }.items(), name
        (secret,) = (one["secret"] for one in spec["volumes"] if one["name"] == "key-secret")
        assert secret["optional"] is True, "without compiled packages nobody needs a key"


def test_gateways_reach_the_controller_and_the_workers_and_nothing_of_rays(
    manifests: list[Manifest], cluster: Manifest
) -> None:
    gateways = {"app.kubernetes.io/name": "shardline-gateway"}
    open_to_gateways: dict[str, list[dict[str, Any]]] = {}
    for policy in of_kind(manifests, "NetworkPolicy"):
        selected = policy["spec"]["podSelector"]["matchLabels"]
        for rule in policy["spec"]["ingress"]:
            peers = [peer["podSelector"]["matchLabels"] for peer in rule.get("from", ())]
            if gateways in peers:
                assert peers == [gateways]
                open_to_gateways[selected["ray.io/node-type"]] = rule["ports"]
    first, last = FREE_PORTS
    assert open_to_gateways == {
        "head": [{"protocol": "TCP", "port": 7700}],
        "worker": [{"protocol": "TCP", "port": first, "endPort": last}],
    }
    for name, group, _ in ray_groups(cluster):
        understood = command_lines.ray("start", command_lines.kuberays_ray_start(group["rayStartParams"], head=False))
        for port in RAY_PORTS:
            assert 0 < understood[port] < first, f"{name}: {port} may be taken from the ports that gateways reach"


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
    found = dict(containers(manifests))
    gateway = command_lines.gateway(
        command_lines.find(found["shardline-gateway/gateway"]["args"], "python", "-m", "gateway")
    )
    assert gateway.listen == "0.0.0.0:8001"
    serve = command_lines.serve(command_lines.find(found["head/serve"]["args"], "shardline", "serve"))
    assert (serve.control_port, str(serve.token_file), str(serve.state_dir)) == (7700, "/token/token", "/state/serve")
    assert serve.leave_running is True, "a restart of the container is no reason to end the deployment"
    for place in (serve.models, serve.state_dir, serve.token_file):
        mounts = [mount["mountPath"] for mount in found["head/serve"]["volumeMounts"]]
        assert any(place.is_relative_to(mount) for mount in mounts), place


def test_a_budget_is_one_that_kubernetes_can_count(manifests: list[Manifest], cluster: Manifest) -> None:
    """Pods of a kind without a scale subresource, as RayCluster is, are counted by an integer minAvailable alone."""
    least = {group["groupName"]: group["minReplicas"] for group in cluster["spec"]["workerGroupSpecs"]}
    of_ray = [one["spec"] for one in of_kind(manifests, "PodDisruptionBudget") if "ray" in one["metadata"]["name"]]
    assert len(of_ray) == 2
    for spec in of_ray:
        assert isinstance(spec.get("minAvailable"), int)
        assert "maxUnavailable" not in spec
        selected = spec["selector"]["matchLabels"]
        if selected.get("ray.io/node-type") != "head":
            assert spec["minAvailable"] < least[selected["ray.io/group"]], "a node could never be drained"


def test_budgets_and_services_select_pods_that_exist(manifests: list[Manifest]) -> None:
    labels = [
        {"app.kubernetes.io/name": "shardline-gateway"},
        {"ray.io/cluster": "shardline", "ray.io/node-type": "head"},
        {"ray.io/cluster": "shardline", "ray.io/group": "cpu"},
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
