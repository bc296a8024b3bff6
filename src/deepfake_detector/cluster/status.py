"""What the cluster tells of a run: its Jobs, their pods in words, and what is wrong with the remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from deepfake_detector.core.diagnosis import diagnose
from deepfake_detector.core.job_end import job_end
from deepfake_detector.core.jobspec import run_selector
from deepfake_detector.core.placement import NOTHING_KNOWN, Surroundings
from deepfake_detector.core.pods import (
    FINISHED,
    Manifest,
    created,
    index_of,
    name_of,
    noun_of,
    phase_of,
    state_of,
    subject_of,
)

if TYPE_CHECKING:
    from deepfake_detector.adapters.cluster import Cluster

ONE_BY_ONE = 16  # pods; more of them are counted


def pods_in_words(cluster: Cluster, run_uri: str) -> str:
    """A paragraph on the run's Jobs in the cluster, oldest first. Raises ClusterError and ClusterAwayError."""
    lines = [f"cluster   {cluster}"]
    jobs = sorted(cluster.jobs(run_selector(run_uri)), key=created)
    if not jobs:
        return "\n".join([*lines, "          no Job of this run (RUN/logs/ has what its pods have left)"])
    pods = cluster.pods(run_selector(run_uri))
    events = cluster.events()
    looking = any(phase_of(pod) not in FINISHED for pod in pods)
    around = Surroundings(cluster.nodes(), cluster.all_pods()) if looking else NOTHING_KNOWN
    for job in jobs:
        mine = [pod for pod in pods if _belongs(pod, job)]
        lines += _job_lines(job, mine)
        for finding in diagnose(job, mine, events, around, datetime.now(UTC)):
            lines.append(f"          ! {finding}")
    return "\n".join(lines)


def _job_lines(job: Manifest, pods: Sequence[Manifest]) -> list[str]:
    status, spec = job.get("status") or {}, job["spec"]
    done = f"{status.get('succeeded', 0)} of {spec.get('completions', 1)} {noun_of(job)}s done"
    lines = [f"          job {name_of(job)}: {_progress(job, pods)}; {done}"]
    # Of an index that was started again the latest pod tells how it is; the findings tell of the others.
    latest = {index_of(pod): pod for pod in sorted(pods, key=created)}
    if len(latest) <= ONE_BY_ONE:
        return lines + [f"            {subject_of(pod)}: {state_of(pod)}" for _, pod in sorted(latest.items())]
    counts = Counter(phase_of(pod).lower() for pod in latest.values())
    return [*lines, "            pods: " + ", ".join(f"{count} {phase}" for phase, count in counts.most_common())]


def _progress(job: Manifest, pods: Sequence[Manifest]) -> str:
    end = job_end(job, pods)
    if job["metadata"].get("deletionTimestamp"):
        return "is being deleted"
    if end is None:
        return "at work"
    return "complete" if end.complete else "failed"


def _belongs(pod: Manifest, job: Manifest) -> bool:
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(owner["uid"] == job["metadata"]["uid"] for owner in owners)
