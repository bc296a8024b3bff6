"""From a Job, its pods, events and nodes to what is wrong, in words that a person can act on.

Pure: everything is the API's own objects as plain dicts. The texts of reasons are Kubernetes' (1.31 to 1.34):
pkg/kubelet/images/types.go and pkg/kubelet/container/sync_result.go (waiting containers), pkg/controller/job
(conditions, FailedCreate), plugin/pkg/admission/resourcequota.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from deepfake_detector.core import pods as pod_status
from deepfake_detector.core.errors import EXIT_PERMANENT
from deepfake_detector.core.findings import Events, Finding, Kind, grouped, last_seen, of_pod
from deepfake_detector.core.job_end import JobEnd, end_condition, job_end
from deepfake_detector.core.placement import NOTHING_KNOWN, Placement, Surroundings
from deepfake_detector.core.pods import Failure, Manifest, failure_of, index_of, name_of, noun_of, phase_of
from deepfake_detector.core.waiting import in_vain

DELETION = timedelta(seconds=30)  # how long a deleted Job's pods may take: their grace period and some more


def diagnose(
    job: Manifest,
    pods: Sequence[Manifest],
    events: Iterable[Manifest],
    around: Surroundings = NOTHING_KNOWN,
    now: datetime | None = None,
) -> list[Finding]:
    """What keeps a Job from its end, most fundamental first; equal problems of several pods are one finding.

    pods: all of the Job's, the failed ones included. events: of the namespace; others' are left out. now: with a
    time zone; without it, a pod that outlives its deletion is not noticed. Of a Job that is being deleted, what keeps
    it from being gone. The work grows with the number of pods, events and nodes, not with their product.
    """
    placement = Placement(around, now)
    if "deletionTimestamp" in job["metadata"]:
        return grouped(_holders(job, pods, placement, now), noun_of(job))
    known = Events(events)
    end = job_end(job, pods)
    found = [*_refusals(job, pods, known), *_ends(job, end)]
    by_index: dict[int, list[Manifest]] = defaultdict(list)
    for pod in sorted(pods, key=pod_status.created):
        by_index[index_of(pod)].append(pod)
    for lives in by_index.values():
        if all(phase_of(pod) != "Succeeded" for pod in lives):
            found += _about_index(lives, known, placement)
    if end:  # its reason tells of the last failure, its controller ends the other pods, and none is started any more
        found = [each for each in found if each.kind is not Kind.DISRUPTED]
        found = [replace(each, remedy="") if each.kind is Kind.FAILED else each for each in found]
        found = [each for each in found if each.kind is not Kind.FAILED or each.told not in end.reason]
    return grouped(found, noun_of(job))


# One index: what became of its earlier pods, and what its present one waits for.


def _about_index(lives: Sequence[Manifest], events: Events, placement: Placement) -> Iterator[Finding]:
    failed = [pod for pod in lives if phase_of(pod) == "Failed"]
    present = [pod for pod in lives if phase_of(pod) not in pod_status.FINISHED]
    if failed:
        yield from _failures(failed)
    for pod in present:
        yield from placement.vanished(pod)
        if not pod["metadata"].get("deletionTimestamp"):
            yield from placement.unscheduled(pod, events)
            yield from _unstarted(pod, events.of_pod(pod))


def _failures(failed: Sequence[Manifest]) -> Iterator[Finding]:
    """The latest failure of an index. Disruptions are not counted: the Job's policy ignores them."""
    own = [pod for pod in failed if not pod_status.was_disrupted(pod)]
    latest = failed[-1]
    if latest not in own:
        yield _disruption(latest, len(failed) - len(own))
    if own:
        failure = failure_of(own[-1])
        assert failure is not None
        yield _failure(own[-1], failure, len(own))


def _disruption(pod: Manifest, times: int) -> Finding:
    reason = (pod_status.holds(pod, "DisruptionTarget") or {}).get("reason", "")
    node = (pod.get("spec") or {}).get("nodeName", "")
    cause = {
        "PreemptionByScheduler": "was preempted by a pod of higher priority",
        "DeletionByTaintManager": f"was taken off node {node}, which does not answer or is being emptied",
        "EvictionByEvictionAPI": f"was evicted from node {node}, which is being drained",
        "DeletionByPodGC": f"was lost with node {node}",
        "TerminationByKubelet": f"was ended by node {node}, which shuts down or ran short of a resource",
    }.get(reason, "was deleted, or asked to end (SIGTERM)")
    problem = cause + _again(times)
    return of_pod(pod, Kind.DISRUPTED, problem, "its Job starts another pod, and the work goes on", times)


def _again(times: int) -> str:
    return f" ({times} times)" if times > 1 else ""


def _failure(pod: Manifest, failure: Failure, times: int) -> Finding:
    again = _again(times)
    if failure.out_of_memory:
        return of_pod(pod, Kind.OUT_OF_MEMORY, f"{failure}{again}", "raise the memory limit (LIMITS=memory=...)", times)
    if failure.reason == "Evicted":
        return of_pod(pod, Kind.EVICTED, f"evicted: {failure.message}{again}", _room_for(failure.message), times)
    if "credentials" in failure.message:
        remedy = "let the service account 'stages' use the bucket (Workload Identity, or a mounted secret)"
        return of_pod(pod, Kind.CREDENTIALS, f"{failure}{again}", remedy, times)
    if awaited := in_vain(failure.message):
        problem = f"{awaited.problem}: its peers waited {awaited.seconds} s for it"
        remedy = "see why its pod does not run, or raise operations.rendezvous_seconds"
        return Finding(Kind.PEER, f"worker {awaited.who}", problem, remedy, times=times)
    if failure.status == EXIT_PERMANENT:
        finding = of_pod(pod, Kind.FAILED, f"failed with {failure}", "no retry can help", times)
    elif times > 1:
        finding = of_pod(pod, Kind.FAILED, f"keeps failing ({times} times), last with {failure}", "see its log", times)
    else:
        finding = of_pod(pod, Kind.FAILED, f"failed with {failure}", "its Job starts another pod", times)
    return replace(finding, told=str(failure))


def _room_for(message: str) -> str:
    if "emptydir" in message.lower() or "ephemeral" in message:
        return "raise the scratch volume's sizeLimit, or take fewer videos to a shard (data.shards)"
    return "the node ran short: ask for as much as the pod uses (REQUESTS=)"


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


def _unstarted(pod: Manifest, about: Sequence[Manifest]) -> Iterator[Finding]:
    """about: the events of the pod."""
    stuck = [entry for entry in pod_status.waiting(pod) if entry[1] in (*_UNPULLED, *_UNCONFIGURED)]
    for status, reason, message in stuck[:1]:
        if reason in _UNPULLED:
            yield _unpulled(pod, status, reason, message, about)
        elif missing := re.search(r"(configmap|secret) \"?([\w./-]+)\"? not found", message):
            problem = f"{missing[1]} {missing[2]} is missing"
            yield of_pod(pod, Kind.CONFIG, problem, "make deploy creates what pods need once")
        else:
            yield of_pod(pod, Kind.START, f"can't start: {reason}: {message}")
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
    return of_pod(pod, Kind.IMAGE, f"image {image} can't be pulled: {cause}", remedy)


def _unmounted(pod: Manifest, events: Sequence[Manifest]) -> Iterator[Finding]:
    starting = any(reason in ("ContainerCreating", "PodInitializing") for _, reason, _ in pod_status.waiting(pod))
    failed = [event for event in events if event.get("reason") in _MOUNTS]
    if starting and failed:
        message = _first_line(max(failed, key=last_seen).get("message", ""))
        if re.search(r'secret "\S+" not found', message):  # no manifest holds one
            remedy = "create it (k8s/components/bucket-key says how)"
        else:
            remedy = "make deploy creates what pods need once" if "not found" in message else ""
        yield of_pod(pod, Kind.VOLUME, f"waits for a volume: {message}", remedy)


# The Job as a whole.


def _refusals(job: Manifest, pods: Sequence[Manifest], events: Events) -> Iterator[Finding]:
    """Why the Job's controller may not create pods: the latest refusal, unless a pod was created since."""
    newest = max((pod_status.created(pod) for pod in pods), default="")
    tried = (event for event in events.of_job(job) if event.get("reason") == "FailedCreate")
    refused = [event for event in tried if last_seen(event) >= newest]
    if not refused or end_condition(job):
        return
    message = max(refused, key=last_seen).get("message", "")
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


_OWN_FINALIZERS = ("foregroundDeletion", "orphan", "batch.kubernetes.io/job-tracking")  # Kubernetes takes them away


def _holders(job: Manifest, pods: Sequence[Manifest], placement: Placement, now: datetime | None) -> Iterator[Finding]:
    """What a Job that is being deleted waits for: its pods, which end before it, or a finalizer of somebody else's."""
    since = pod_status.moment(job["metadata"]["deletionTimestamp"])
    if now is None or since is None or now < since + DELETION:
        return
    held = False
    for pod in pods:
        for finding in _holding(pod, placement):
            held = True
            yield finding
    finalizers = _finalizers(job)
    if finalizers and not held:
        problem = f"is being deleted since {since:%H:%M:%S} UTC, but kept by the finalizer {finalizers}"
        yield Finding(Kind.DELETION, name_of(job), problem, "whoever set it has to remove it")


def _holding(pod: Manifest, placement: Placement) -> Iterator[Finding]:
    if finalizers := _finalizers(pod):
        problem = f"holds its deleted Job, kept by the finalizer {finalizers}"
        yield of_pod(pod, Kind.DELETION, problem, "whoever set it has to remove it")
    elif phase_of(pod) not in pod_status.FINISHED:
        lost = list(placement.vanished(pod))
        node = (pod.get("spec") or {}).get("nodeName", "")
        remedy = f"it holds its deleted Job (kubectl delete node {node}, if it won't return)"
        yield from (replace(finding, remedy=remedy) for finding in lost)
        if not lost:
            told = pod["metadata"].get("deletionTimestamp")
            why = "has not ended yet" if told else "was not told to end yet, which Kubernetes' garbage collector does"
            yield of_pod(pod, Kind.DELETION, f"holds its deleted Job: {why}")


def _finalizers(manifest: Manifest) -> str:
    """Those that Kubernetes does not remove by itself."""
    return ", ".join(name for name in manifest["metadata"].get("finalizers") or () if name not in _OWN_FINALIZERS)


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""
