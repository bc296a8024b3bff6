"""From a stage's Job, as an overlay has it, to the one that is created.

Pure functions of manifests as plain dicts (camelCase, as YAML and JSON have them).
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deepfake_detector.core.capacity import quantity
from deepfake_detector.core.errors import ConfigError
from deepfake_detector.core.job_end import end_condition
from deepfake_detector.core.pods import holds

CONTAINER = "stage"
RUN_LABEL = "deepfake-detector/run"
RUN_URI = "deepfake-detector/run-uri"  # annotation
SETTINGS = "deepfake-detector/settings"  # annotation: fingerprint of the stage's settings
COMPONENT_LABEL = "app.kubernetes.io/component"
TRAINING_SERVICE = "training"
RENDEZVOUS_PORT = 2220
TRAINING_ROUNDS = 3  # failures of every training pod after which the Job gives up
LONGEST_LABEL = 63  # RFC 1123, and Kubernetes holds a pod's hostname to it
LONGEST_SLUG = 32  # leaves room for the stage, the hash and an index of 6 digits
# Kinds without a namespace, of Kubernetes itself and of the components that an overlay may bring.
CLUSTER_SCOPED = frozenset(
    {
        "APIService",
        "CSIDriver",
        "ClusterQueue",
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "IngressClass",
        "MutatingWebhookConfiguration",
        "Namespace",
        "Node",
        "PersistentVolume",
        "PriorityClass",
        "ResourceFlavor",
        "RuntimeClass",
        "StorageClass",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "ValidatingWebhookConfiguration",
    }
)
_RESOURCE = re.compile(r"(?:[a-z0-9.-]+/)?[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Resources:
    """Requests and limits that replace the manifest's, by name: {"cpu": "2", "memory": "4Gi"}."""

    requests: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)


def run_hash(run_uri: str) -> str:
    """The first 8 hex digits of the URI's SHA-256: the value of RUN_LABEL. run_uri: as Storage.uri has it."""
    return hashlib.sha256(run_uri.encode()).hexdigest()[:8]


def run_selector(run_uri: str) -> str:
    """The label selector of everything in the cluster that belongs to the run."""
    return f"{RUN_LABEL}={run_hash(run_uri)}"


def job_name(stage: str, run_uri: str, completions: int) -> str:
    """`<stage>-<slug>-<hash>`: a DNS label (RFC 1123) which leaves room for `-<index>`, the pods' hostnames.

    slug: the last part of the run's URI, as far as a label can hold it. Raises ConfigError when the name of the last
    pod would be longer than 63 characters, or is no label.
    """
    last = run_uri.rstrip("/").rpartition("/")[2]
    slug = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:LONGEST_SLUG].rstrip("-")
    name = "-".join(filter(None, (stage, slug, run_hash(run_uri))))
    hostname = f"{name}-{max(completions - 1, 0)}"
    if completions < 1 or len(hostname) > LONGEST_LABEL or not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", hostname):
        raise ConfigError(
            f"job {name} with {completions} completions: expected its last pod's name {hostname} to be a DNS label of "
            f"at most {LONGEST_LABEL} characters, and at least 1 completion"
        )
    return name


def parse_resources(text: str, where: str = "") -> dict[str, str]:
    """ "cpu=2,memory=4Gi" as a dict; raises ConfigError naming `where` (a flag) and the part that is wrong."""
    values: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not _RESOURCE.fullmatch(name) or name in values:
            raise ConfigError(f"{where} {part}: expected cpu=2,memory=4Gi or the like, each name once".strip())
        try:
            quantity(value)
        except ConfigError as error:
            raise ConfigError(f"{where} {name}={error}".strip()) from None
        values[name] = value
    return values


def stage_job(objects: Sequence[Mapping[str, Any]], stage: str, where: str) -> dict[str, Any]:
    """The stage's Job among a rendered overlay's objects; raises ConfigError naming `where` it is missing."""
    for thing in objects:
        if thing.get("kind") == "Job" and thing.get("metadata", {}).get("name") == stage:
            return dict(thing)
    raise ConfigError(f"{where}: expected a Job named {stage!r}")


def with_resources(job: Mapping[str, Any], resources: Resources) -> dict[str, Any]:
    """A copy of the Job whose stage container has these requests and limits.

    A request of the manifest above a new limit falls to it. Raises ConfigError for a new request above the limit,
    which the API server would refuse.
    """
    changed = copy.deepcopy(dict(job))
    container = _container(changed)
    declared = container.get("resources") or {}
    requests = {**(declared.get("requests") or {}), **resources.requests}
    limits = {**(declared.get("limits") or {}), **resources.limits}
    for name in sorted(requests.keys() & limits.keys()):
        if quantity(requests[name]) > quantity(limits[name]):
            if name in resources.requests:
                raise ConfigError(
                    f"--requests {name}={requests[name]}: expected at most the limit, {limits[name]} (--limits {name}=)"
                )
            requests[name] = limits[name]
    container["resources"] = {**declared, "requests": requests, "limits": limits}
    return changed


def cpu_limit_of(job: Mapping[str, Any]) -> int:
    """Whole CPUs that the stage's container may use, rounded down, at least 1. Raises ConfigError without a limit."""
    limit = _container(job).get("resources", {}).get("limits", {}).get("cpu")
    if limit is None:
        raise ConfigError(
            f"job {job['metadata']['name']}: no CPU limit on container {CONTAINER!r}, expected one: the number of "
            "threads is taken from it (--limits cpu=, or the overlay)"
        )
    return max(1, int(round(quantity(limit), 6)))


def fill(
    job: Mapping[str, Any],
    *,
    stage: str,
    run_uri: str,
    namespace: str,
    image: str,
    completions: int,
    parallelism: int,
    settings_fingerprint: str,
    resources: Resources,
    retry: int = 0,
) -> dict[str, Any]:
    """The Job that is created, from the overlay's template, which is left as it is.

    run_uri: as Storage.uri has it. A training Job also gets PEERS, the address of every pod's rendezvous, in order of
    index, and the limit of failures that goes with their number (pods that were deleted or evicted are not counted).
    Its pods are told the fingerprint, too, and compare it with config.json (jobs/environment.py). retry: number of
    the round of preprocessing, 0 for the first. Raises ConfigError (see job_name, with_resources).
    """
    filled = with_resources(job, resources)
    name = job_name(stage, run_uri, completions)
    filled["metadata"] |= {"name": name, "namespace": namespace}
    _merge(filled["metadata"], "annotations", {RUN_URI: run_uri, SETTINGS: settings_fingerprint})
    for holder in (filled, filled["spec"]["template"]):
        _merge(holder.setdefault("metadata", {}), "labels", {RUN_LABEL: run_hash(run_uri)})
    filled["spec"] |= {"completions": completions, "parallelism": parallelism}
    container = _container(filled)
    container["image"] = image
    _set_variable(container, "SETTINGS", f"{stage}:{settings_fingerprint}")
    _set_variable(container, "RUN", run_uri)
    if retry:
        _set_variable(container, "RETRY", str(retry))
    if stage == "train":
        _set_variable(container, "PEERS", ",".join(peers(name, completions)))
        # Storage that is away for longer than its budget ends all pods, one after the other: so many rounds are tried.
        filled["spec"]["backoffLimit"] = TRAINING_ROUNDS * completions
    return filled


def peers(job: str, pods: int) -> list[str]:
    """host:port of each supervisor, by the headless Service: short names, in the pods' own namespace."""
    return [f"{job}-{index}.{TRAINING_SERVICE}:{RENDEZVOUS_PORT}" for index in range(pods)]


def in_namespace(objects: Sequence[Mapping[str, Any]], namespace: str) -> list[dict[str, Any]]:
    """Copies of the objects in another namespace: the Namespace, what is in it, and service accounts as subjects.

    Objects that belong to no namespace keep their names.
    """
    moved = []
    for original in objects:
        thing = copy.deepcopy(dict(original))
        metadata = thing.setdefault("metadata", {})
        if thing.get("kind") == "Namespace":
            metadata["name"] = namespace
        elif thing.get("kind") not in CLUSTER_SCOPED:
            metadata["namespace"] = namespace
        if thing.get("kind") in ("RoleBinding", "ClusterRoleBinding"):
            for subject in thing.get("subjects") or ():
                if subject.get("kind") == "ServiceAccount":
                    subject["namespace"] = namespace
        moved.append(thing)
    return moved


def image_of(job: Mapping[str, Any]) -> str:
    """The image of the stage's container."""
    return str(_container(job)["image"])


def retry_of(job: Mapping[str, Any]) -> int:
    """The round of preprocessing that the Job is for: 0 for the first, and for other stages."""
    values = [each.get("value") for each in _container(job).get("env") or () if each["name"] == "RETRY"]
    return int(values[0] or 0) if values else 0


def is_over(job: Mapping[str, Any]) -> bool:
    """Whether nothing more will come of the Job: complete, failed, about to fail (FailureTarget), or being deleted."""
    return "deletionTimestamp" in job["metadata"] or bool(holds(job, "Complete") or end_condition(job))


def _container(job: Mapping[str, Any]) -> dict[str, Any]:
    for container in job["spec"]["template"]["spec"]["containers"]:
        if container["name"] == CONTAINER:
            found: dict[str, Any] = container  # itself, since callers change it
            return found
    raise ConfigError(f"job {job['metadata']['name']}: expected a container named {CONTAINER!r}")


def _merge(holder: dict[str, Any], key: str, values: Mapping[str, str]) -> None:
    holder[key] = {**(holder.get(key) or {}), **values}


def _set_variable(container: dict[str, Any], name: str, value: str) -> None:
    """Set an environment variable to exactly this value: the kubelet would expand $(NAME), and takes $$ for $."""
    others = [variable for variable in container.get("env") or () if variable["name"] != name]
    container["env"] = [{"name": name, "value": value.replace("$", "$$")}, *others]
