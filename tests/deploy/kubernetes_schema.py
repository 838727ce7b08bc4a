"""Checks manifests against what Kubernetes and KubeRay take, without a cluster and without a network.

Kubernetes' own kinds: the models of its Python client, which are made from its OpenAPI description, name every field
and its type. KubeRay's RayCluster (ray.io/v1): the fields that version 1.5.0 has, written down here; what is a
Kubernetes type inside it is checked as such; and what its operator refuses beyond that (validation.go) is refused too.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from kubernetes import client

KINDS: Final = {
    ("v1", "Namespace"): "V1Namespace",
    ("v1", "Service"): "V1Service",
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("v1", "PersistentVolumeClaim"): "V1PersistentVolumeClaim",
    ("apps/v1", "Deployment"): "V1Deployment",
    ("policy/v1", "PodDisruptionBudget"): "V1PodDisruptionBudget",
    ("networking.k8s.io/v1", "NetworkPolicy"): "V1NetworkPolicy",
    ("ray.io/v1", "RayCluster"): "RayCluster",
}
KUBERAY: Final[Mapping[str, Mapping[str, str]]] = {
    "RayCluster": {"apiVersion": "str", "kind": "str", "metadata": "V1ObjectMeta", "spec": "RayClusterSpec"},
    "RayClusterSpec": {
        "suspend": "bool",
        "managedBy": "str",
        "gcsFaultToleranceOptions": "object",
        "autoscalerOptions": "AutoscalerOptions",
        "headServiceAnnotations": "dict[str, str]",
        "enableInTreeAutoscaling": "bool",
        "headGroupSpec": "HeadGroupSpec",
        "rayVersion": "str",
        "workerGroupSpecs": "list[WorkerGroupSpec]",
    },
    "AutoscalerOptions": {
        "resources": "V1ResourceRequirements",
        "image": "str",
        "imagePullPolicy": "str",
        "securityContext": "V1SecurityContext",
        "idleTimeoutSeconds": "int",
        "upscalingMode": "str",
        "version": "str",
        "env": "list[V1EnvVar]",
        "envFrom": "list[V1EnvFromSource]",
        "volumeMounts": "list[V1VolumeMount]",
    },
    "HeadGroupSpec": {
        "template": "V1PodTemplateSpec",
        "headService": "V1Service",
        "enableIngress": "bool",
        "rayStartParams": "dict[str, str]",
        "labels": "dict[str, str]",
        "resources": "dict[str, str]",
        "serviceType": "str",
    },
    "WorkerGroupSpec": {
        "groupName": "str",
        "replicas": "int",
        "minReplicas": "int",
        "maxReplicas": "int",
        "rayStartParams": "dict[str, str]",
        "labels": "dict[str, str]",
        "resources": "dict[str, str]",
        "suspend": "bool",
        "idleTimeoutSeconds": "int",
        "template": "V1PodTemplateSpec",
        "scaleStrategy": "ScaleStrategy",
        "numOfHosts": "int",
    },
    "ScaleStrategy": {"workersToDelete": "list[str]"},
}
REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "RayClusterSpec": ("headGroupSpec",),
    "HeadGroupSpec": ("rayStartParams", "template"),
    "WorkerGroupSpec": ("groupName", "maxReplicas", "minReplicas", "rayStartParams", "template"),
}
ENUMS: Final[Mapping[str, tuple[str, ...]]] = {
    ".autoscalerOptions.version": ("v1", "v2"),
    ".autoscalerOptions.upscalingMode": ("Default", "Aggressive", "Conservative"),
}
MAX_CLUSTER_NAME: Final = 53
DNS_LABEL: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_KEY: Final = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
QUANTITY: Final = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
SCALARS: Final[Mapping[str, tuple[type, ...]]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "object": (int, str, dict, list),
    "datetime": (str,),
}


def problems(manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with it, each with its path; an empty list: nothing."""
    kind = (str(manifest.get("apiVersion")), str(manifest.get("kind")))
    if kind not in KINDS:
        return [f"no schema of {kind[0]} {kind[1]}"]
    found = list(_check(manifest, KINDS[kind], kind[1]))
    if kind[1] == "RayCluster" and not found:
        found = list(_refused_by_kuberay(manifest))
    return found


def _refused_by_kuberay(cluster: Mapping[str, Any]) -> Iterator[str]:
    """What the operator says of a RayCluster whose fields are all as they should be."""
    name, spec = cluster["metadata"]["name"], cluster["spec"]
    if len(name) > MAX_CLUSTER_NAME or not DNS_LABEL.fullmatch(name):
        yield f"RayCluster.metadata.name: expected a DNS label of at most {MAX_CLUSTER_NAME} characters, got {name!r}"
    head = spec["headGroupSpec"]
    groups = [("headGroupSpec", head)]
    groups += [(f"workerGroupSpecs[{number}]", one) for number, one in enumerate(spec.get("workerGroupSpecs", ()))]
    scaled = bool(spec.get("enableInTreeAutoscaling"))
    version = spec.get("autoscalerOptions", {}).get("version")
    for place, group in groups:
        path = f"RayCluster.spec.{place}"
        pod = group["template"]["spec"]
        if not pod["containers"]:
            yield f"{path}.template.spec.containers: expected at least one"
        if "labels" in group["rayStartParams"]:
            yield f"{path}.rayStartParams.labels: refused; the group's own `labels` are for that"
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(group["rayStartParams"]):
            yield f"{path}.resources: refused beside resources in rayStartParams"
        for key, value in group.get("labels", {}).items():
            if not (LABEL_KEY.fullmatch(key) and LABEL_VALUE.fullmatch(value)):
                yield f"{path}.labels.{key}: expected a label as Kubernetes takes it, got {value!r}"
        if group.get("suspend"):
            yield f"{path}.suspend: refused"
        if scaled and version == "v2" and pod.get("restartPolicy", "Never") != "Never":
            yield f"{path}.template.spec.restartPolicy: expected Never or nothing with autoscaler v2"
        if place != "headGroupSpec" and not 0 <= group["minReplicas"] <= group["maxReplicas"]:
            yield f"{path}.minReplicas: expected 0 to maxReplicas, got {group['minReplicas']}"
    variables = {one["name"] for one in head["template"]["spec"]["containers"][0].get("env", ())}
    kept = spec.get("gcsFaultToleranceOptions") is not None
    for variable, refused in {
        "RAY_enable_autoscaler_v2": version is not None or not scaled,
        "RAY_REDIS_ADDRESS": True,
        "REDIS_USERNAME": True,
        "REDIS_PASSWORD": kept,
    }.items():
        if refused and variable in variables:
            yield f"RayCluster.spec.headGroupSpec: {variable} in the head's environment is refused"


def _check(value: Any, kind: str, path: str) -> Iterator[str]:
    if kind.startswith("list["):
        if isinstance(value, list):
            for number, item in enumerate(value):
                yield from _check(item, kind[5:-1], f"{path}[{number}]")
        else:
            yield f"{path}: expected a list, got {value!r}"
    elif kind.startswith("dict["):
        if isinstance(value, dict):
            inner = "quantity" if path.endswith((".requests", ".limits")) else kind[5:-1].split(", ", 1)[1]
            for key, item in value.items():
                yield from _check(item, inner, f"{path}.{key}")
        else:
            yield f"{path}: expected a mapping, got {value!r}"
    elif kind in SCALARS or kind == "quantity":
        yield from _check_scalar(value, kind, path)
    else:
        yield from _check_object(value, kind, path)


def _check_scalar(value: Any, kind: str, path: str) -> Iterator[str]:
    if kind == "quantity":
        if not (isinstance(value, str | int) and QUANTITY.fullmatch(str(value))):
            yield f"{path}: expected an amount such as 500m or 4Gi, got {value!r}"
    elif allowed := next((values for end, values in ENUMS.items() if path.endswith(end)), None):
        if value not in allowed:
            yield f"{path}: expected one of {', '.join(allowed)}, got {value!r}"
    elif not isinstance(value, SCALARS[kind]) or (isinstance(value, bool) and kind not in {"bool", "object"}):
        yield f"{path}: expected {kind}, got {value!r}"


def _check_object(value: Any, kind: str, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: expected keys of {kind}, got {value!r}"
        return
    fields, required = _fields(kind)
    for key, item in value.items():
        if key not in fields:
            yield f"{path}.{key}: {kind} has no such field"
        else:
            yield from _check(item, fields[key], f"{path}.{key}")
    for key in required:
        if key not in value:
            yield f"{path}.{key}: missing"


def _fields(kind: str) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """The fields of a type with their types, and those that it must have."""
    if kind in KUBERAY:
        return KUBERAY[kind], REQUIRED.get(kind, ())
    model = getattr(client, kind)
    fields = {model.attribute_map[name]: given for name, given in model.openapi_types.items()}
    return fields, tuple(model.attribute_map[name] for name in model.openapi_types if _is_required(model, name))


def _is_required(model: Any, name: str) -> bool:
    """The client refuses to set a required field to nothing, and says so."""
    checking = client.Configuration()
    checking.client_side_validation = True
    empty = model.__new__(model)
    empty.local_vars_configuration = checking
    try:
        setattr(empty, name, None)
    except ValueError as error:
        return "must not be `None`" in str(error)
    return False
