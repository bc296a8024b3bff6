"""One Job for a stage of a run, with the settings that config.json holds, however many clients submit at once.

1. A client asks for config.json's version, then for the Jobs at work, and settles its settings against both.
2. It writes config.json, so that pods find it, unless its version is another one by now: then it begins again at 1.
3. It creates the Job, under a name that belongs to stage and run alone, so that one client succeeds; the others begin
   again at 1, where they find a Job, to attach to or with other settings.
4. The client that has created the Job writes config.json once more. What others have written between 2 and 3 is
   overwritten; whoever asked at 1 before the Job was there finds another version at 2.
5. It looks once more for Jobs of the run's other stages, which have names of their own: of two clients whose stages
   exclude each other, at least the second one to create its Job sees both, and removes its own.

Whoever backs out at 5 leaves what the Job's pods have done by then. Of consequence is only the plan of a retry of lost
videos, under RUN/retries/: once its pods are gone, and with them the Job's name, other clients' pods may be at work on
that plan, so that nobody can say whether it may be removed. It does no harm. The records are those from before as long
as the retry is not finished, and no training reads others: one that has begun goes on without it, one that has not,
the Job that was in the way included, ends with 78 and says what to do. `make preprocess RUN=... RETRY_LOST=1` finishes
the retry, and without its folder it never was.

What this can't keep out is a client that is cut off between 3 and 4, one that works in another namespace, an editor,
and storage that ignores preconditions. So the pods are told the fingerprint of the settings, too, and do nothing with
others (jobs/environment.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deepfake_detector.adapters.cluster import Cluster
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Stage
from deepfake_detector.core.errors import EXIT_PERMANENT, ClusterAwayError, ConfigError, DetectorError
from deepfake_detector.core.job_end import end_condition
from deepfake_detector.core.jobspec import COMPONENT_LABEL, SETTINGS, image_of, is_over, run_selector
from deepfake_detector.core.pods import holds, name_of
from deepfake_detector.stages.runs import Settlement, keep_settlement, load_settlement, store_settlement

Job = Mapping[str, Any]
ROUNDS = 5  # more means that somebody creates and deletes, or writes config.json, all the time


def jobs_of(cluster: Cluster, run: Storage) -> dict[Stage, Job]:
    """The run's Jobs in the cluster's namespace, at work or over, by their stage."""
    found: dict[Stage, Job] = {}
    for job in cluster.jobs(run_selector(run.uri)):
        stage = job["metadata"]["labels"].get(COMPONENT_LABEL)
        if stage in ("preprocess", "train", "export"):
            found[stage] = job
    return found


def at_work(jobs: Mapping[Stage, Job]) -> dict[Stage, Job]:
    """Those that are not over."""
    return {stage: job for stage, job in jobs.items() if not is_over(job)}


def require_settled(run: Storage, active: Mapping[Stage, Job]) -> None:
    """Raise ConfigError where a Job at work was created with other settings than config.json holds by now."""
    stored = load_settlement(run) if active else None
    for stage, job in active.items():
        made_with = (job["metadata"].get("annotations") or {}).get(SETTINGS)
        if stored is not None and stored.fingerprint(stage) != made_with:
            raise ConfigError(
                f"job {name_of(job)}: at work with other settings than those in {run.uri}/{layout.CONFIG}, which was "
                f"changed after the Job was created: expected the same (make stop RUN={run.uri} ends it)"
            )


def create_or_attach(
    cluster: Cluster,
    run: Storage,
    stage: Stage,
    propose: Callable[[Mapping[Stage, Job]], Settlement],
    fill: Callable[[Settlement], Job],
) -> tuple[str, Settlement]:
    """Have a Job at work, and say how it came about; returns its name, and the settings that it was created with.

    propose: the settings beside the Jobs at work, raising ConfigError where they contradict theirs; it may be called
    several times. fill: the Job of these settings. A Job that is over is removed before. Raises what these two raise,
    and ClusterAwayError where there is no end of others' changes.
    """
    for _ in range(ROUNDS):
        version = run.version(layout.CONFIG)
        jobs = jobs_of(cluster, run)
        settlement = propose(at_work(jobs))
        job, there = fill(settlement), jobs.get(stage)
        if there is not None and is_over(there):
            print(f"job {name_of(there)}: {_ending(there)}; removing it, to create it again", flush=True)
            cluster.delete_job(name_of(there), uid=there["metadata"]["uid"])
            continue  # it may have taken minutes
        if not store_settlement(run, settlement, version):
            continue
        if there is not None:
            _tell_attached(there, job)
            return name_of(there), settlement
        if cluster.create_job(job):
            try:
                keep_settlement(run, settlement, stage)
            finally:  # whatever comes of it, the Job is there
                print(f"created job {name_of(job)}", flush=True)
            _require_still_ready(cluster, run, stage, propose, name_of(job))
            return name_of(job), settlement
    raise ClusterAwayError(
        f"job {name_of(job)} ({cluster}), {run.uri}/{layout.CONFIG}: changed by others {ROUNDS} times in a row, "
        "expected one client at a time"
    )


def _require_still_ready(
    cluster: Cluster, run: Storage, stage: Stage, propose: Callable[[Mapping[Stage, Job]], Settlement], name: str
) -> None:
    active = at_work(jobs_of(cluster, run))
    if active.keys() <= {stage}:
        return
    ours = active.get(stage)
    try:
        propose(active)
    except DetectorError as error:
        if error.exit_status == EXIT_PERMANENT and ours is not None:
            cluster.delete_job(name, uid=ours["metadata"]["uid"])
            print(f"removed job {name} again", flush=True)
        raise


def _tell_attached(there: Job, job: Job) -> None:
    image, ours = image_of(there), image_of(job)
    if image != ours:
        print(f"job {name_of(there)}: at work with image {image}, not {ours} (make stop ends it)", flush=True)
    print(f"attached to job {name_of(there)}, created {there['metadata']['creationTimestamp']}", flush=True)


def _ending(job: Job) -> str:
    if failed := end_condition(job):
        return f"failed before ({failed.get('reason', 'Failed')})"
    return "ended before" if holds(job, "Complete") else "being removed"
