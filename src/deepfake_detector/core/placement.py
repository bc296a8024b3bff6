"""Pods and nodes: why a pod has none, and what becomes of one whose node vanished.

Pure: everything is the API's own objects as plain dicts. The scheduler's words are those of its FitError (Kubernetes
1.31 to 1.34).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from deepfake_detector.core import pods as pod_status
from deepfake_detector.core.capacity import Room, describe, is_ready, requests_of, rooms
from deepfake_detector.core.findings import Events, Finding, Kind, of_pod
from deepfake_detector.core.pods import Manifest, name_of

_INSUFFICIENT = re.compile(r"Insufficient ([\w-]+(?:[./][\w-]+)*)")
_RESOURCES = {"memory": "memory", "cpu": "cpu", "ephemeral-storage": "disk"}
OVERDUE = timedelta(seconds=5)  # a kubelet tells of a pod's end within less


@dataclass(frozen=True)
class Surroundings:
    """What is known of the cluster besides the Job: None for what the user may not list."""

    nodes: Sequence[Manifest] | None = None
    pods: Sequence[Manifest] | None = None  # of all namespaces


NOTHING_KNOWN = Surroundings()


class Placement:
    """A Job's pods beside the nodes of one moment. now: with a time zone; None: nothing is overdue.

    What all pods are summed up for is kept: the pods of one Job ask for the same.
    """

    def __init__(self, around: Surroundings, now: datetime | None) -> None:
        self._around = around
        self._now = now
        self._nodes = {name_of(node): node for node in around.nodes or ()}
        self._rooms: dict[str, list[Room]] = {}

    def vanished(self, pod: Manifest) -> Iterator[Finding]:
        """The pod's node does not answer, or is gone, or does not say that the pod has ended."""
        name = (pod.get("spec") or {}).get("nodeName")
        if not name:
            return
        node = self._nodes.get(name)
        due = pod_status.moment(pod["metadata"].get("deletionTimestamp"))
        replaced = (
            f"its replacement starts when the node object is gone (kubectl delete node {name}, if it won't return)"
        )
        if node is not None and not is_ready(node):
            since = (pod_status.condition(node, "Ready") or {}).get("lastTransitionTime")
            problem = f"node {name} does not answer" + (f" since {since}" if since else "")
            yield of_pod(pod, Kind.NODE, problem, replaced if due else "the pod is given up after 30 s of that")
        elif self._around.nodes is not None and node is None:
            yield of_pod(pod, Kind.NODE, f"node {name} is gone", "Kubernetes removes its pods within a minute or two")
        elif due and self._now and self._now > due + OVERDUE:
            problem = f"should be gone since {due:%H:%M:%S} UTC: node {name} does not say so"
            yield of_pod(pod, Kind.NODE, problem, replaced)

    def unscheduled(self, pod: Manifest, events: Events) -> Iterator[Finding]:
        """No node takes the pod."""
        scheduled = pod_status.condition(pod, "PodScheduled")
        if scheduled is None or scheduled["status"] != "False":
            return
        message = scheduled.get("message", "")
        if scheduled.get("reason") == "SchedulingGated":
            yield of_pod(pod, Kind.PENDING, "is held back by a scheduling gate", "whoever set it has to lift it")
            return
        short = list(dict.fromkeys(_INSUFFICIENT.findall(message.split("preemption:")[0])))
        if not short:
            remedy = "add a node that takes it, or change its tolerations and node selector"
            yield of_pod(pod, Kind.PENDING, f"pending: {message or 'no node takes it'}", remedy)
            return
        coming = any(event.get("reason") == "TriggeredScaleUp" for event in events.of_pod(pod))
        what = " and ".join(_RESOURCES.get(name, "gpu" if "gpu" in name else name) for name in short)
        numbers = "; ".join(self._asked_and_free(pod, name) for name in short)
        remedy = "the autoscaler adds a node" if coming else "lower REQUESTS or the number of pods, or add a node"
        yield of_pod(pod, Kind.PENDING, f"pending for lack of {what} ({numbers})", remedy)

    def _asked_and_free(self, pod: Manifest, resource: str) -> str:
        """ "asked 4 cpu, free 1.2 on the roomiest node"."""
        asked = f"asked {describe(resource, requests_of(pod['spec']).get(resource, 0.0))}"
        if self._around.nodes is None or self._around.pods is None:
            return asked
        free = {room.node: room.free.get(resource, 0.0) for room in self._rooms_for(pod)}
        if not free:
            return f"{asked}, no node takes it"
        node = max(free, key=lambda name: free[name])
        which = f"{node}, the roomiest of {len(free)} nodes" if len(free) > 1 else node
        return f"{asked}, free {describe(resource, max(0.0, free[node]))} on {which}"

    def _rooms_for(self, pod: Manifest) -> list[Room]:
        spec = pod["spec"]
        alike = repr((spec.get("nodeSelector"), spec.get("tolerations")))  # all that decides which nodes take it
        if alike not in self._rooms:
            self._rooms[alike] = rooms(self._around.nodes or (), self._around.pods or (), spec)
        return self._rooms[alike]
