"""What pods ask for and what nodes have left: CPUs, bytes of memory, GPUs.

Pure functions of manifests as plain dicts (camelCase, as YAML and JSON have them).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepfake_detector.core.errors import ConfigError

Amounts = dict[str, float]  # resource, as Kubernetes names it -> CPUs, bytes or devices

_DECIMAL = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)}
_SUFFIXES = {**_DECIMAL, **_BINARY}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([numkMGTPE]|[KMGTPE]i)?)")
_BLOCKING_TAINTS = ("NoSchedule", "NoExecute")


def quantity(text: str | int | float) -> float:
    """The number that a Kubernetes quantity means: "100m" is 0.1, "2Gi" 2147483648.

    Grammar: kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity. Raises ConfigError.
    """
    if not (match := _QUANTITY.fullmatch(str(text).strip())):
        raise ConfigError(f"{text!r}: expected a quantity such as 500m, 2 or 2Gi")
    number, exponent, suffix = match.groups()
    return float(number + (exponent or "")) * _SUFFIXES[suffix or ""]


def describe(resource: str, amount: float) -> str:
    """An amount for people: "1.5" CPUs, "2.0 GiB" or "300 MiB" of memory."""
    if resource in ("memory", "ephemeral-storage"):
        return f"{amount / 2**30:.1f} GiB" if abs(amount) >= 2**30 else f"{amount / 2**20:.0f} MiB"
    return f"{round(amount, 2):g}"


def requests_of(spec: Mapping[str, Any]) -> Amounts:
    """What the scheduler reserves for a pod's spec; a limit without a request counts as one.

    Init containers run one after another, those with restartPolicy Always beside everything after them (sidecars).
    """
    running: Amounts = {}
    most: Amounts = {}
    for container in spec.get("initContainers") or ():
        asked = _asked(container)
        if container.get("restartPolicy") == "Always":
            running = _sum(running, asked)
            asked = {}
        most = _most(most, _sum(running, asked))
    for container in spec.get("containers") or ():
        running = _sum(running, _asked(container))
    overhead = {name: quantity(text) for name, text in (spec.get("overhead") or {}).items()}
    return _sum(_most(most, running), overhead)


@dataclass(frozen=True)
class Room:
    """What a node has left for more pods."""

    node: str
    free: Amounts


def rooms(
    nodes: Iterable[Mapping[str, Any]], pods: Sequence[Mapping[str, Any]], spec: Mapping[str, Any] | None = None
) -> list[Room]:
    """The room on every node that takes new pods; pods: all of the cluster's, of all namespaces.

    spec: of a pod that looks for a node; nodes that its nodeSelector or their taints keep it from are left out.
    """
    used: dict[str, Amounts] = {}
    for pod in pods:
        node = pod["spec"].get("nodeName")
        if node and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            used[node] = _sum(used.get(node, {}), {**requests_of(pod["spec"]), "pods": 1.0})
    found = []
    for node in nodes:
        if not _takes(node, spec or {}):
            continue
        name = node["metadata"]["name"]
        whole = {key: quantity(text) for key, text in node["status"].get("allocatable", {}).items()}
        taken = used.get(name, {})
        found.append(Room(name, {key: amount - taken.get(key, 0.0) for key, amount in whole.items()}))
    return found


def places(asked: Amounts, found: Iterable[Room]) -> int:
    """How many pods that ask for so much fit on these nodes together."""
    total = 0
    for room in found:
        wanted = {**asked, "pods": 1.0}
        # Sums of decimal CPU shares are not exact in binary.
        fits = [int(room.free.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items() if amount > 0]
        total += max(0, min(fits))
    return total


def is_ready(node: Mapping[str, Any]) -> bool:
    conditions = node.get("status", {}).get("conditions") or ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _takes(node: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
    labels = node["metadata"].get("labels") or {}
    tolerations = spec.get("tolerations") or ()
    return (
        is_ready(node)
        and not node.get("spec", {}).get("unschedulable")
        and all(labels.get(name) == value for name, value in (spec.get("nodeSelector") or {}).items())
        and all(
            any(_tolerates(toleration, taint) for toleration in tolerations)
            for taint in node.get("spec", {}).get("taints") or ()
            if taint["effect"] in _BLOCKING_TAINTS
        )
    )


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", "")


def _asked(container: Mapping[str, Any]) -> Amounts:
    resources = container.get("resources") or {}
    asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: quantity(text) for name, text in asked.items()}


def _sum(first: Amounts, second: Amounts) -> Amounts:
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in {**first, **second}}


def _most(first: Amounts, second: Amounts) -> Amounts:
    return {name: max(first.get(name, 0.0), second.get(name, 0.0)) for name in {**first, **second}}
