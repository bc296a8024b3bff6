"""What a diagnosis consists of, and the events that it reads. Pure: the API's own objects as plain dicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from deepfake_detector.core.pods import Manifest, created, index_of, name_of, subject_of


class Kind(StrEnum):
    """What sort of trouble; one that is told already is recognised by it."""

    CONFIG = "config"
    CREDENTIALS = "credentials"
    DEADLINE = "deadline"
    DELETION = "deletion"
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


def of_pod(pod: Manifest, kind: Kind, problem: str, remedy: str = "", times: int = 0) -> Finding:
    """A finding on one pod's index."""
    return Finding(kind, subject_of(pod), problem, remedy, (index_of(pod),), times)


def grouped(found: Iterable[Finding], noun: str) -> list[Finding]:
    """Equal problems of several indexes as one finding, in the order of the first of each. noun: "worker"."""
    groups: dict[Finding, list[Finding]] = {}
    for finding in found:
        alike = replace(finding, subject="" if finding.indexes else finding.subject, indexes=())
        groups.setdefault(alike, []).append(finding)
    merged = []
    for alike, members in groups.items():
        indexes = tuple(sorted({index for member in members for index in member.indexes}))
        subject = f"{noun}s {ranges(indexes)}" if len(indexes) > 1 else members[0].subject
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


class Events:
    """A namespace's events by what they are about: each is looked at once, however many pods a Job has."""

    def __init__(self, events: Iterable[Manifest]) -> None:
        self._about: dict[tuple[str, str], list[Manifest]] = defaultdict(list)
        for event in events:
            about = event.get("involvedObject") or {}
            self._about[about.get("kind", ""), about.get("name", "")].append(event)

    def of_pod(self, pod: Manifest) -> Sequence[Manifest]:
        return self._about.get(("Pod", name_of(pod)), ())

    def of_job(self, job: Manifest) -> Sequence[Manifest]:
        """Not those of an earlier Job of the same name."""
        uid = job["metadata"].get("uid")
        named = self._about.get(("Job", name_of(job)), ())
        return [event for event in named if event["involvedObject"].get("uid") in (None, "", uid)]


def last_seen(event: Manifest) -> str:
    """When it happened last: newer events have eventTime, older ones lastTimestamp."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or created(event))
