"""From a Job, its pods, events and nodes to what is wrong, in words that a person can act on.

Pure: everything is the API's own objects as plain dicts. The texts of reasons are Kubernetes' (1.31 to 1.34):
pkg/kubelet/images/types.go and pkg/kubelet/container/sync_result.go (waiting containers), the scheduler's FitError,
pkg/controller/job (conditions, FailedCreate), plugin/pkg/admission/resourcequota.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from deepfake_detector.core import pods as pod_status
from deepfake_detector.core.capacity import describe, is_ready, requests_of, rooms
from deepfake_detector.core.errors import EXIT_PERMANENT
from deepfake_detector.core.job_end import JobEnd, end_condition, job_end
from deepfake_detector.core.pods import Failure, Manifest, failure_of, index_of, name_of, noun_of, subject_of


class Kind(StrEnum):
    """What sort of trouble; one that is told already is recognised by it."""

    CONFIG = "config"
    CREDENTIALS = "credentials"
    DEADLINE = "deadline"
    DISRUPTED = "disrupted"
    EVICTED = "evicted"
    FAILED = "failed"
    IMAGE = "image"
    JOB = "job"
    NODE = "node"
    OUT_OF_MEMORY = "out of memory"
    PEER = "peer"
    PENDING = "pending"
    POD_SECURITY = "pod security"
    QUOTA = "quota"
    START = "start"
    VOLUME = "volume"


@dataclass(frozen=True)
class Finding:
    """One problem. subject: "worker 1", "shards 2-5"; remedy: what to do, maybe ""; indexes: of the pods concerned.

    times: how often it happened to an index, where that is counted.
    """

    kind: Kind
    subject: str
    problem: str
    remedy: str = ""
    indexes: tuple[int, ...] = ()
    times: int = 0
    told: str = ""  # the failure alone, without its count

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}" + (f": {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Surroundings:
    """What is known of the cluster besides the Job: None for what the user may not list."""

    nodes: Sequence[Manifest] | None = None
    pods: Sequence[Manifest] | None = None  # of all namespaces


NOTHING_KNOWN = Surroundings()


def diagnose(
    job: Manifest,
    pods: Sequence[Manifest],
    events: Iterable[Manifest],
    around: Surroundings = NOTHING_KNOWN,
    now: datetime | None = None,
) -> list[Finding]:
    """What keeps a Job from its end, most fundamental first; equal problems of several pods are one finding.

    pods: all of the Job's, the failed ones included. events: of the namespace; others' are left out. now: with a
    time zone; without it, a pod that outlives its deletion is not noticed.
    """
    mine = [event for event in events if _is_about(event, job, pods)]
    end = job_end(job, pods)
    found = [*_refusals(job, pods, mine), *_ends(job, end)]
    by_index: dict[int, list[Manifest]] = defaultdict(list)
    for pod in sorted(pods, key=pod_status.created):
        by_index[index_of(pod)].append(pod)
    for lives in by_index.values():
        if all(pod_status.phase_of(pod) != "Succeeded" for pod in lives):
            found += _about_index(lives, mine, around, now)
    if end:  # its reason tells of the last failure, and no pod is started any more
        found = [replace(each, remedy="") if each.kind is Kind.FAILED else each for each in found]
        found = [each for each in found if each.kind is not Kind.FAILED or each.told not in end.reason]
    return _grouped(found, noun_of(job))


# One index: what became of its earlier pods, and what its present one waits for.


def _about_index(
    lives: Sequence[Manifest], events: Sequence[Manifest], around: Surroundings, now: datetime | None
) -> Iterator[Finding]:
    failed = [pod for pod in lives if pod_status.phase_of(pod) == "Failed"]
    present = [pod for pod in lives if pod_status.phase_of(pod) not in pod_status.FINISHED]
    if failed:
        yield from _failures(failed)
    for pod in present:
        yield from _on_vanished_node(pod, around.nodes, now)
        if not pod["metadata"].get("deletionTimestamp"):
            yield from _unscheduled(pod, events, around)
            yield from _unstarted(pod, events)


def _failures(failed: Sequence[Manifest]) -> Iterator[Finding]:
    """The latest failure of an index. Disruptions are not counted: the Job's policy ignores them."""
    own = [pod for pod in failed if not pod_status.was_disrupted(pod)]
    latest = failed[-1]
    if latest not in own:
        yield _disruption(latest)
    if own:
        failure = failure_of(own[-1])
        assert failure is not None
        yield _failure(own[-1], failure, len(own))


def _disruption(pod: Manifest) -> Finding:
    reason = (pod_status.holds(pod, "DisruptionTarget") or {}).get("reason", "")
    node = (pod.get("spec") or {}).get("nodeName", "")
    cause = {
        "PreemptionByScheduler": "was preempted by a pod of higher priority",
        "DeletionByTaintManager": f"was taken off node {node}, which does not answer or is being emptied",
        "EvictionByEvictionAPI": f"was evicted from node {node}, which is being drained",
        "DeletionByPodGC": f"was lost with node {node}",
        "TerminationByKubelet": f"was ended by node {node}, which shuts down or ran short of a resource",
    }.get(reason, "was deleted, or asked to end (SIGTERM)")
    return _of(pod, Kind.DISRUPTED, cause, "its Job starts another pod, and the work goes on", 1)


_PEER = re.compile(r"worker (?P<who>.+?): not there after (?P<seconds>[\d.]+) s")
_CHIEF = re.compile(r"supervisor 0 \((?P<where>.+?)\): no answer for (?P<seconds>[\d.]+) s")


def _failure(pod: Manifest, failure: Failure, times: int) -> Finding:
    again = f" ({times} times)" if times > 1 else ""
    if failure.out_of_memory:
        return _of(pod, Kind.OUT_OF_MEMORY, f"{failure}{again}", "raise the memory limit (LIMITS=memory=...)", times)
    if failure.reason == "Evicted":
        return _of(pod, Kind.EVICTED, f"evicted: {failure.message}{again}", _room_for(failure.message), times)
    if "credentials" in failure.message:
        remedy = "let the service account 'stages' use the bucket (Workload Identity, or a mounted secret)"
        return _of(pod, Kind.CREDENTIALS, f"{failure}{again}", remedy, times)
    if match := _PEER.search(failure.message):
        problem = f"never came: {subject_of(pod)} waited {match['seconds']} s for it{again}"
        finding = _of(pod, Kind.PEER, problem, "see why its pod does not run, or raise operations.rendezvous_seconds")
        return replace(finding, subject=f"worker {match['who']}", indexes=(), times=times)
    if match := _CHIEF.search(failure.message):
        problem = f"did not answer: {subject_of(pod)} waited {match['seconds']} s for it{again}"
        finding = _of(pod, Kind.PEER, problem, "see why its pod does not run, or raise operations.rendezvous_seconds")
        return replace(finding, subject="worker 0", indexes=(), times=times)
    if failure.status == EXIT_PERMANENT:
        finding = _of(pod, Kind.FAILED, f"failed with {failure}", "no retry can help", times)
    elif times > 1:
        finding = _of(pod, Kind.FAILED, f"keeps failing ({times} times), last with {failure}", "see its log", times)
    else:
        finding = _of(pod, Kind.FAILED, f"failed with {failure}", "its Job starts another pod", times)
    return replace(finding, told=str(failure))


def _room_for(message: str) -> str:
    if "emptydir" in message.lower() or "ephemeral" in message:
        return "raise the scratch volume's sizeLimit, or take fewer videos to a shard (data.shards)"
    return "the node ran short: ask for as much as the pod uses (REQUESTS=)"


def _on_vanished_node(pod: Manifest, nodes: Sequence[Manifest] | None, now: datetime | None) -> Iterator[Finding]:
    name = (pod.get("spec") or {}).get("nodeName")
    if not name:
        return
    node = next((each for each in nodes or () if name_of(each) == name), None)
    due = pod_status.moment(pod["metadata"].get("deletionTimestamp"))
    replaced = f"its replacement starts when the node object is gone (kubectl delete node {name}, if it won't return)"
    if node is not None and not is_ready(node):
        lost = f"node {name} does not answer"
        since = (pod_status.condition(node, "Ready") or {}).get("lastTransitionTime")
        problem = lost + (f" since {since}" if since else "")
        yield _of(pod, Kind.NODE, problem, replaced if due else "the pod is given up after 30 s of that")
    elif nodes is not None and node is None:
        yield _of(pod, Kind.NODE, f"node {name} is gone", "Kubernetes removes its pods within a minute or two")
    elif due and now and now > due + timedelta(seconds=5):
        yield _of(pod, Kind.NODE, f"should be gone since {due:%H:%M:%S} UTC: node {name} does not say so", replaced)


_INSUFFICIENT = re.compile(r"Insufficient ([\w-]+(?:[./][\w-]+)*)")
_RESOURCES = {"memory": "memory", "cpu": "cpu", "ephemeral-storage": "disk"}


def _unscheduled(pod: Manifest, events: Sequence[Manifest], around: Surroundings) -> Iterator[Finding]:
    scheduled = pod_status.condition(pod, "PodScheduled")
    if scheduled is None or scheduled["status"] != "False":
        return
    message = scheduled.get("message", "")
    if scheduled.get("reason") == "SchedulingGated":
        yield _of(pod, Kind.PENDING, "is held back by a scheduling gate", "whoever set it has to lift it")
        return
    short = list(dict.fromkeys(_INSUFFICIENT.findall(message.split("preemption:")[0])))
    if not short:
        remedy = "add a node that takes it, or change its tolerations and node selector"
        yield _of(pod, Kind.PENDING, f"pending: {message or 'no node takes it'}", remedy)
        return
    coming = any(event.get("reason") == "TriggeredScaleUp" for event in events if _names(event, pod))
    what = " and ".join(_RESOURCES.get(name, "gpu" if "gpu" in name else name) for name in short)
    numbers = "; ".join(_asked_and_free(pod, name, around) for name in short)
    remedy = "the autoscaler adds a node" if coming else "lower REQUESTS or the number of pods, or add a node"
    yield _of(pod, Kind.PENDING, f"pending for lack of {what} ({numbers})", remedy)


def _asked_and_free(pod: Manifest, resource: str, around: Surroundings) -> str:
    """ "asked 4 cpu, free 1.2 on the roomiest node"."""
    asked = f"asked {describe(resource, requests_of(pod['spec']).get(resource, 0.0))}"
    if around.nodes is None or around.pods is None:
        return asked
    free = {room.node: room.free.get(resource, 0.0) for room in rooms(around.nodes, around.pods, pod["spec"])}
    if not free:
        return f"{asked}, no node takes it"
    node = max(free, key=lambda name: free[name])
    which = f"{node}, the roomiest of {len(free)} nodes" if len(free) > 1 else node
    return f"{asked}, free {describe(resource, max(0.0, free[node]))} on {which}"


_UNPULLED = (
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
)
_WRAPPED = re.compile(r'failed to (?:pull image|pull and unpack image|resolve reference) "[^"]*": ', re.IGNORECASE)
_UNCONFIGURED = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff")
_MOUNTS = ("FailedMount", "FailedAttachVolume")


def _unstarted(pod: Manifest, events: Sequence[Manifest]) -> Iterator[Finding]:
    about = [event for event in events if _names(event, pod)]
    stuck = [entry for entry in pod_status.waiting(pod) if entry[1] in (*_UNPULLED, *_UNCONFIGURED)]
    for status, reason, message in stuck[:1]:
        if reason in _UNPULLED:
            yield _unpulled(pod, status, reason, message, about)
        elif missing := re.search(r"(configmap|secret) \"?([\w./-]+)\"? not found", message):
            problem = f"{missing[1]} {missing[2]} is missing"
            yield _of(pod, Kind.CONFIG, problem, "make deploy creates what pods need once")
        else:
            yield _of(pod, Kind.START, f"can't start: {reason}: {message}")
    if not stuck:
        yield from _unmounted(pod, about)


def _unpulled(pod: Manifest, status: Manifest, reason: str, message: str, events: Sequence[Manifest]) -> Finding:
    image = status.get("image", "")
    # Between two tries the kubelet only says that it backs off; what went wrong is in the event of the last one.
    tried = [event.get("message", "") for event in events if event.get("reason") == "Failed"]
    text = " ".join([message, *tried]).lower()
    remedy = "build and load it (make images, make cluster), or name another with IMAGE="
    if any(word in text for word in ("unauthorized", "authentication", "401", "403", "denied")):
        cause = "the registry refuses it"
        remedy = "check its name, and let the nodes read the registry (imagePullSecrets of the account 'stages')"
    elif "not found" in text or reason == "ErrImageNeverPull":
        cause = "not found"
    elif reason == "InvalidImageName":
        cause, remedy = "not an image's name", "name another with IMAGE="
    else:
        cause = _WRAPPED.sub("", _first_line(next(iter(tried), message))) or reason
    return _of(pod, Kind.IMAGE, f"image {image} can't be pulled: {cause}", remedy)


def _unmounted(pod: Manifest, events: Sequence[Manifest]) -> Iterator[Finding]:
    starting = any(reason in ("ContainerCreating", "PodInitializing") for _, reason, _ in pod_status.waiting(pod))
    failed = [event for event in events if event.get("reason") in _MOUNTS]
    if starting and failed:
        message = _first_line(max(failed, key=_last_seen).get("message", ""))
        remedy = "make deploy creates what pods need once" if "not found" in message else ""
        yield _of(pod, Kind.VOLUME, f"waits for a volume: {message}", remedy)


# The Job as a whole.


def _refusals(job: Manifest, pods: Sequence[Manifest], events: Sequence[Manifest]) -> Iterator[Finding]:
    """Why the Job's controller may not create pods: the latest refusal, unless a pod was created since."""
    newest = max((pod_status.created(pod) for pod in pods), default="")
    refused = [event for event in events if event.get("reason") == "FailedCreate" and _last_seen(event) >= newest]
    if not refused or end_condition(job):
        return
    message = max(refused, key=_last_seen).get("message", "")
    subject = name_of(job)
    reason = _first_line(message.partition(" is forbidden: ")[2] or message)
    if "exceeded quota" in message:
        yield Finding(Kind.QUOTA, subject, f"no more pods: {reason}", "lower REQUESTS, LIMITS or the number of pods")
    elif "violates PodSecurity" in message:
        remedy = "the Job must keep what the manifests say (or the namespace's Pod Security label is too strict)"
        yield Finding(Kind.POD_SECURITY, subject, f"its pods are refused: {reason}", remedy)
    elif "serviceaccount" in message.lower() and "not found" in message:
        yield Finding(Kind.CONFIG, subject, f"no pods: {reason}", "make deploy creates what pods need once")
    else:
        yield Finding(Kind.START, subject, f"its pods are refused: {reason}", "see kubectl describe job")


def _ends(job: Manifest, end: JobEnd | None) -> Iterator[Finding]:
    if pod_status.holds(job, "Suspended"):
        yield Finding(Kind.JOB, name_of(job), "is suspended", "a queue (Kueue) admits it, or whoever suspended it")
    if end and not end.complete:
        kind = Kind.DEADLINE if end.cause == "DeadlineExceeded" else Kind.JOB
        yield Finding(kind, name_of(job), f"has failed: {end.reason}", end.remedy)


# Events and findings.


def _is_about(event: Manifest, job: Manifest, pods: Sequence[Manifest]) -> bool:
    about = event.get("involvedObject") or {}
    if about.get("kind") == "Job":
        return about.get("name") == name_of(job) and about.get("uid") in (None, "", job["metadata"].get("uid"))
    return about.get("kind") == "Pod" and any(_names(event, pod) for pod in pods)


def _names(event: Manifest, pod: Manifest) -> bool:
    about = event.get("involvedObject") or {}
    return about.get("kind") == "Pod" and about.get("name") == name_of(pod)


def _last_seen(event: Manifest) -> str:
    """When it happened last: newer events have eventTime, older ones lastTimestamp."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or pod_status.created(event))


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def _of(pod: Manifest, kind: Kind, problem: str, remedy: str = "", times: int = 0) -> Finding:
    return Finding(kind, subject_of(pod), problem, remedy, (index_of(pod),), times)


def _grouped(found: Iterable[Finding], noun: str) -> list[Finding]:
    groups: dict[Finding, list[Finding]] = {}
    for finding in found:
        alike = replace(finding, subject="" if finding.indexes else finding.subject, indexes=())
        groups.setdefault(alike, []).append(finding)
    merged = []
    for alike, members in groups.items():
        indexes = tuple(sorted(index for member in members for index in member.indexes))
        subject = members[0].subject if len(members) == 1 else f"{noun}s {ranges(indexes)}"
        merged.append(replace(alike, subject=subject, indexes=indexes))
    return merged


def ranges(indexes: Iterable[int]) -> str:
    """ "0, 2-5": sorted numbers, neighbours joined."""
    spans: list[list[int]] = []
    for index in sorted(set(indexes)):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)
