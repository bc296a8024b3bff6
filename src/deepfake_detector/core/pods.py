"""What a pod's status says, read from its manifest as a plain dict (camelCase, as JSON has it)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from deepfake_detector.core.capacity import describe, quantity
from deepfake_detector.core.errors import EXIT_TERMINATED

Manifest = Mapping[str, Any]

INDEX = "batch.kubernetes.io/job-completion-index"  # annotation, and from Kubernetes 1.28 a label, too
COMPONENT = "app.kubernetes.io/component"
NOUNS = {"preprocess": "shard", "train": "worker"}  # what an index is called; a Job of one pod: by its stage
FINISHED = ("Succeeded", "Failed")
OUT_OF_MEMORY = "OOMKilled"  # the kubelet's reason, and the first word of our own line


@dataclass(frozen=True)
class Failure:
    """Why a pod failed. status: its exit status, None where no container ended; message: one line, maybe ""."""

    status: int | None
    reason: str  # as Kubernetes names it: Error, OOMKilled, Evicted, StartError
    message: str

    def __str__(self) -> str:
        if self.status is None:
            return ": ".join(part for part in (self.reason, self.message) if part)
        if self.out_of_memory:
            return self.message
        unsaid = "no termination message" if self.reason in ("Error", "") else self.reason
        return f"exit {self.status}: {self.message or unsaid}"

    @property
    def out_of_memory(self) -> bool:
        return self.reason == OUT_OF_MEMORY or OUT_OF_MEMORY in self.message


def name_of(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])


def index_of(pod: Manifest) -> int:
    """The pod's completion index; 0 for a Job without indexes."""
    metadata = pod["metadata"]
    text = (metadata.get("labels") or {}).get(INDEX) or (metadata.get("annotations") or {}).get(INDEX) or "0"
    return int(text)


def noun_of(manifest: Manifest) -> str:
    """What one pod of a Job is called: "worker", "shard", or its stage's name. Job or pod."""
    stage = (manifest["metadata"].get("labels") or {}).get(COMPONENT, "pod")
    return NOUNS.get(stage, stage)


def subject_of(pod: Manifest) -> str:
    """ "worker 1", "shard 3", "export"."""
    noun = noun_of(pod)
    return f"{noun} {index_of(pod)}" if noun in NOUNS.values() or noun == "pod" else noun


def phase_of(pod: Manifest) -> str:
    return str((pod.get("status") or {}).get("phase", "Pending"))


def moment(text: str | None) -> datetime | None:
    """A timestamp of the API (RFC 3339, UTC); None where there is none."""
    return datetime.fromisoformat(text) if text else None


def condition(manifest: Manifest, kind: str) -> Manifest | None:
    """The condition of this type, whatever its status; of a pod, node or Job."""
    conditions = (manifest.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] == kind), None)


def holds(manifest: Manifest, kind: str) -> Manifest | None:
    """The condition of this type if its status is True."""
    found = condition(manifest, kind)
    return found if found and found["status"] == "True" else None


def container_statuses(pod: Manifest) -> Iterator[Manifest]:
    """Init containers first."""
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def waiting(pod: Manifest) -> Iterator[tuple[Manifest, str, str]]:
    """Containers that do not run yet: status, reason and message of the kubelet."""
    for status in container_statuses(pod):
        if state := (status.get("state") or {}).get("waiting"):
            yield status, state.get("reason", ""), state.get("message", "")


def failure_of(pod: Manifest) -> Failure | None:
    """Why a failed pod failed; None for one that did not.

    The line that a stage leaves in its termination log is the message. A pod that was evicted, or whose node is
    gone, may have no container that ended: then it is the kubelet's or the controller's message.
    """
    if phase_of(pod) != "Failed":
        return None
    status = pod.get("status") or {}
    if status.get("reason") == "Evicted":  # the containers' own status is only that of being killed
        return Failure(None, "Evicted", _line(status.get("message")).rstrip("."))
    for container in container_statuses(pod):
        ended = (container.get("state") or {}).get("terminated")
        if ended and ended.get("exitCode"):
            return _ended_badly(pod, container.get("name", ""), ended)
    disruption = holds(pod, "DisruptionTarget") or {}
    return Failure(
        None,
        status.get("reason") or disruption.get("reason", "Failed"),
        _line(status.get("message") or disruption.get("message")),
    )


_OUR_REMEDY = re.compile(r"[:\s]*\(?raise the memory limit.*$")  # a finding gives its own


def _ended_badly(pod: Manifest, container: str, ended: Manifest) -> Failure:
    status, reason, message = ended["exitCode"], ended.get("reason", ""), _line(ended.get("message"))
    if OUT_OF_MEMORY in message:  # a stage's own line, with the peak that the cgroup recorded
        message = _OUR_REMEDY.sub("", message)
    elif reason == OUT_OF_MEMORY:  # the kernel ended the whole container, and nobody was left to say more
        limit = limit_of(pod, container, "memory")
        bound = f"limit {describe('memory', limit)}, and the peak reached it" if limit else "no limit: the node's end"
        message = f"{OUT_OF_MEMORY}: {bound}"
    return Failure(status, reason, message)


def limit_of(pod: Manifest, container: str, resource: str) -> float | None:
    """A container's limit in CPUs or bytes; None where it has none."""
    spec = pod.get("spec") or {}
    for each in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        limits = (each.get("resources") or {}).get("limits") or {}
        if each.get("name") == container and resource in limits:
            return quantity(limits[resource])
    return None


def was_disrupted(pod: Manifest) -> bool:
    """A failure that the Job's policy ignores: evicted, preempted, or ended by SIGTERM, which it obeyed."""
    failure = failure_of(pod)
    return failure is not None and (failure.status == EXIT_TERMINATED or holds(pod, "DisruptionTarget") is not None)


def state_of(pod: Manifest) -> str:
    """What the pod does, in a few words."""
    phase = phase_of(pod)
    node = (pod.get("spec") or {}).get("nodeName")
    if phase == "Succeeded":
        return "done"
    if phase == "Failed":
        return f"failed: {failure_of(pod)}"
    if pod["metadata"].get("deletionTimestamp"):
        return "is being deleted"
    if not node:
        return "waits for a node"
    if phase == "Running":
        return f"runs on {node}"
    return f"starts on {node}"


def created(manifest: Manifest) -> str:
    """Sorts by time: RFC 3339 in UTC."""
    return str(manifest["metadata"].get("creationTimestamp", ""))


def _line(text: str | None) -> str:
    """The error in a termination message, which may be the end of a log: its last line that begins with "error: ",
    as the jobs print it, or else the last one.
    """
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (own or lines or [""])[-1]
