"""How a Job ended, and why, from its conditions and pods as plain dicts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deepfake_detector.core import pods as pod_status
from deepfake_detector.core.errors import EXIT_PERMANENT
from deepfake_detector.core.pods import Manifest, failure_of, name_of, noun_of, subject_of


@dataclass(frozen=True)
class JobEnd:
    """How a Job ended. permanent: no retry can help (status 78). settled: no pod of it is left running.

    explained: False while the pod that ended the Job is not among those that are known to have failed. The API server
    tells of Jobs and pods in two streams, either of which may be ahead.
    """

    complete: bool
    reason: str = ""
    permanent: bool = False
    settled: bool = True
    explained: bool = True
    cause: str = ""  # the condition's reason
    remedy: str = "the same command again goes on from what is done"


def job_end(job: Manifest, pods: Sequence[Manifest]) -> JobEnd | None:
    """None while the Job goes on. A failure is known (condition FailureTarget) before its last pods have ended."""
    if pod_status.holds(job, "Complete"):
        return JobEnd(complete=True)
    ended = end_condition(job)
    if ended is None:
        return None
    cause, message, limits = ended.get("reason", ""), ended.get("message", ""), job.get("spec") or {}
    end = JobEnd(complete=False, settled=pod_status.holds(job, "Failed") is not None, cause=cause)
    match cause:
        case "PodFailurePolicy":
            return _by_policy(end, message, pods)
        case "DeadlineExceeded":
            return replace(end, reason=f"took longer than activeDeadlineSeconds={limits.get('activeDeadlineSeconds')}")
        case "BackoffLimitExceeded":
            reason = f"its pods failed more than backoffLimit={limits.get('backoffLimit')} times"
        case "FailedIndexes" | "MaxFailedIndexesExceeded":
            which = (job.get("status") or {}).get("failedIndexes", "")
            reason = f"{noun_of(job)} {which} failed {limits.get('backoffLimitPerIndex', 0) + 1} times"
        case _:
            reason = f"{cause}: {message}"
    return replace(end, reason=reason + _latest(pods))


def _by_policy(end: JobEnd, message: str, pods: Sequence[Manifest]) -> JobEnd:
    """The failure policy ended it; its message names the pod: "Container stage for pod NS/NAME failed with exit
    code 78 matching FailJob rule at index 0".
    """
    code = re.search(r"exit code (\d+)", message)
    named = re.search(r"pod (?:[\w.-]+/)?([\w.-]+) failed", message)
    pod = next((each for each in pods if named and name_of(each) == named[1]), None)
    failure = failure_of(pod) if pod else None
    reason = f"{subject_of(pod)}: {failure}" if pod and failure is not None else message
    permanent = code is None or int(code[1]) == EXIT_PERMANENT
    remedy = "" if permanent else end.remedy
    return replace(end, reason=reason, explained=failure is not None, permanent=permanent, remedy=remedy)


def _latest(pods: Sequence[Manifest]) -> str:
    latest = max((pod for pod in pods if failure_of(pod)), key=pod_status.created, default=None)
    return f"; the last: {subject_of(latest)}: {failure_of(latest)}" if latest is not None else ""


def end_condition(job: Manifest) -> Manifest | None:
    """The condition that says why the Job failed, if it did."""
    return pod_status.holds(job, "Failed") or pod_status.holds(job, "FailureTarget")
