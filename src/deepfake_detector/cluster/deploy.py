"""What is applied once: namespace, accounts, Service, policies, settings, and all else of an overlay but its Jobs."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from deepfake_detector.adapters import kubectl
from deepfake_detector.adapters.cluster import Cluster, ending_after
from deepfake_detector.cluster.target import Target, overlay_folder
from deepfake_detector.core.errors import EXIT_OK, ClusterAwayError
from deepfake_detector.core.jobspec import COMPONENT_LABEL, in_namespace, stage_job
from deepfake_detector.core.pods import condition, waiting

# Strings in which some reader sees a number or a truth value; a run's hash may be 12345e67.
_READ_OTHERWISE = re.compile(r"[-+.]?\d|[yYnN]$")
READY_SECONDS = 180.0  # an image may have to be pulled


def stage_template(overlay: str, stage: str) -> dict[str, Any]:
    """The stage's Job as the overlay renders it; raises ConfigError and ClusterError."""
    folder = overlay_folder(overlay)
    return stage_job(kubectl.kustomize(folder), stage, str(folder))


def deploy(target: Target, *, dry_run: bool = False) -> int:
    """Apply the overlay, and wait until what it runs by itself is ready. Returns 0.

    dry_run: print what would be applied. Raises ConfigError, ClusterError with kubectl's own words, and
    ClusterAwayError, with the reason, when a Deployment is not ready in time.
    """
    cluster = Cluster.connect(target.context, target.namespace)
    print(cluster, file=sys.stderr if dry_run else sys.stdout, flush=True)
    rendered = kubectl.kustomize(overlay_folder(target.overlay))
    objects = in_namespace([thing for thing in rendered if thing["kind"] != "Job"], target.namespace)
    if dry_run:
        print(to_yaml(objects), end="")
        return EXIT_OK
    print(kubectl.apply(objects, cluster.context, cluster.namespace), end="", flush=True)
    await_ready(cluster, [thing["metadata"]["name"] for thing in objects if thing["kind"] == "Deployment"])
    return EXIT_OK


def await_ready(cluster: Cluster, deployments: Sequence[str], budget_seconds: float = READY_SECONDS) -> None:
    """Wait until all replicas of these Deployments are available; raises ClusterAwayError saying why one is not."""
    waiting = set(deployments)
    if not waiting:
        return
    with ending_after(budget_seconds) as over:
        for _, deployment in cluster.watch("deployments", stop=over):
            name = deployment["metadata"]["name"]
            if name in waiting and _is_ready(deployment):
                waiting.remove(name)
                print(f"{name} is ready", flush=True)
            if not waiting:
                return
    name = sorted(waiting)[0]
    raise ClusterAwayError(
        f"deployment {name} ({cluster}): not ready after {budget_seconds:g} s: {_reason(cluster, name)}"
    )


def to_yaml(objects: Sequence[Mapping[str, Any]]) -> str:
    """One document each, as kubectl reads it back: PyYAML writes YAML 1.1, where the string 1e3 is no number."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, _data: Any) -> bool:
            return True  # anchors help no reader here

        def quote_doubtful(self, text: str) -> yaml.Node:
            style = "'" if _READ_OTHERWISE.match(text) else None
            return self.represent_scalar("tag:yaml.org,2002:str", text, style)

    Plain.add_representer(str, Plain.quote_doubtful)
    return str(yaml.dump_all([dict(thing) for thing in objects], Dumper=Plain, sort_keys=False, width=120))


def _is_ready(deployment: Mapping[str, Any]) -> bool:
    status = deployment.get("status", {})
    wanted = deployment["spec"].get("replicas", 1)
    return (
        status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
        and status.get("updatedReplicas", 0) >= wanted
        and status.get("availableReplicas", 0) >= wanted
    )


def _reason(cluster: Cluster, component: str) -> str:
    """What its pods wait for, in Kubernetes' words."""
    said = []
    for pod in cluster.pods(f"{COMPONENT_LABEL}={component}"):
        said += [f"{reason} {message}".strip() for _, reason, message in waiting(pod)]
        unscheduled = condition(pod, "PodScheduled")
        if unscheduled and unscheduled["status"] == "False":
            said.append(f"{unscheduled.get('reason', '')} {unscheduled.get('message', '')}")
    remedy = f"kubectl --context {cluster.context} -n {cluster.namespace} describe deployment {component}"
    return f"{said[0] if said else 'its pods say nothing'} ({remedy})"
