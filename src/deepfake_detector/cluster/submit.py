"""A stage's Job: settings checked and stored, Job created or attached to, followed to its end.

The order keeps every step safe to repeat and to cut off: nothing is written to the bucket before all checks have
passed, and the settings are there before the pods that read them. What clients that submit at once do to each other:
cluster/creation.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from deepfake_detector.adapters import kubectl
from deepfake_detector.adapters.cluster import Cluster
from deepfake_detector.adapters.rounds import require_no_half_done_retry
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.cluster.creation import Job, at_work, create_or_attach, jobs_of, require_settled
from deepfake_detector.cluster.deploy import to_yaml
from deepfake_detector.cluster.emulator import storage_access
from deepfake_detector.cluster.results import describe, is_done, require_good
from deepfake_detector.cluster.target import Target, overlay_folder
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, Stage
from deepfake_detector.core.errors import EXIT_OK, ClusterError, ConfigError, DataError
from deepfake_detector.core.jobspec import Resources, cpu_limit_of, fill, retry_of, stage_job, with_resources
from deepfake_detector.core.pods import name_of
from deepfake_detector.stages.prepare import Cpus, settle
from deepfake_detector.stages.retry import NextRetry, describe_gain, next_retry
from deepfake_detector.stages.runs import Settlement, has_begun, has_config, load_config, records_storage

RETRY_LOST = "RETRY_LOST"  # as the user gives it to make
JobStage = Literal["preprocess", "train", "export"]


@dataclass(frozen=True)
class Submission:
    """What a user asked for. URIs are gs://; recipe, videos and records: "" or None is what the run was given before.

    records: another run, or its folder records/. pods: shards that are preprocessed at the same time.
    retry_lost: a further round of preprocessing for lost videos. dry_run: print the Job instead of creating it.
    detach: don't follow it.
    """

    stage: JobStage
    run: str
    image: str
    videos: str = ""
    records: str = ""
    recipe: str | None = None
    assignments: Sequence[str] = ()
    pods: int = 1
    resources: Resources = field(default_factory=Resources)
    retry_lost: bool = False
    dry_run: bool = False
    detach: bool = False


def submit(wanted: Submission, target: Target) -> int:
    """Have the stage done in the cluster, and return the exit status (core/errors.py).

    A stage that is finished is described, a Job that is at work is attached to, one that ended otherwise is removed
    and created again. Raises ConfigError naming the setting that differs from those of a stage that has begun or is at
    work, DataError where an earlier stage is not finished, ClusterError, StorageError.
    """
    with ThreadPoolExecutor(1) as beside:  # each of the two takes 0.3 s
        rendering = beside.submit(kubectl.kustomize, overlay_folder(target.overlay))
        cluster = Cluster.connect(target.context, target.namespace)
    # What a dry run prints must be fit for `kubectl create -f -`.
    print(f"{cluster}, image {wanted.image}", file=sys.stderr if wanted.dry_run else sys.stdout, flush=True)
    _require_reachable(wanted)
    templates = rendering.result()
    template = stage_job(templates, wanted.stage, str(overlay_folder(target.overlay)))
    cpus = _cpus(templates, wanted)
    with storage_access(cluster, target.overlay):
        wanted = replace(wanted, records=_run_of(wanted.records))
        run = open_storage(wanted.run)
        retry = next_retry(run, RETRY_LOST) if wanted.retry_lost else None
        if retry and not retry.shards:
            print("\n".join(retry.why_none), file=sys.stderr if wanted.dry_run else sys.stdout, flush=True)
            return EXIT_OK
        propose = partial(_propose, run, wanted, cpus, retry)
        fill_in = partial(_fill, template, run, wanted, cluster.namespace, retry)
        active = at_work(jobs_of(cluster, run))
        settlement = propose(active)
        job = fill_in(settlement)
        if wanted.dry_run:
            print(to_yaml([job]), end="")
            return EXIT_OK
        if not retry and is_done(run, wanted.stage):
            return _finish(run, wanted.stage, settlement.config)
        if wanted.stage not in active:
            _check(cluster, target.overlay, wanted, job)
        name, settlement = create_or_attach(cluster, run, wanted.stage, propose, fill_in)
        return _follow(cluster, run, settlement.config, wanted, name, retry)


def _propose(
    run: Storage, wanted: Submission, cpus: Cpus, retry: NextRetry | None, active: Mapping[Stage, Job]
) -> Settlement:
    """The settings of the submission, beside the Jobs at work and all that the run holds already."""
    _require_ready(run, wanted, active)
    if retry:
        _require_own_round(run, retry, active)
    require_settled(run, active)
    settlement = settle(
        run,
        recipe=wanted.recipe,
        assignments=wanted.assignments,
        videos=wanted.videos,
        records=wanted.records,
        cpus=cpus,
        active=active.keys(),
    )
    if wanted.stage == "train":
        require_good(settlement.records_of(run), settlement.config)
    return settlement


def _follow(
    cluster: Cluster, run: Storage, config: Config, wanted: Submission, name: str, retry: NextRetry | None
) -> int:
    if wanted.detach:
        print(f"next: make status RUN={run.uri}")
        return EXIT_OK
    from deepfake_detector.cluster.follow import follow

    status = follow(cluster, run, wanted.stage, name, config, retry)
    if status == EXIT_OK and retry:
        print(describe_gain(run, retry.number))
    return _finish(run, wanted.stage, config) if status == EXIT_OK else status


def _finish(run: Storage, stage: JobStage, config: Config) -> int:
    """Say what the stage has come to. Raises DataError where preprocessing lost too many videos."""
    print("\n".join(describe(run, stage)), flush=True)
    if stage == "preprocess":
        require_good(records_storage(run), config)
    return EXIT_OK


def _run_of(records: str) -> str:
    """The run that a `--records` means: gs://bucket/run or gs://bucket/run/records."""
    folder, _, last = records.rstrip("/").rpartition("/")
    return folder if last == "records" and not has_config(open_storage(records)) else records


def _require_reachable(wanted: Submission) -> None:
    """Pods see the bucket, and nothing of this machine."""
    places = {"--run": wanted.run, "--videos": wanted.videos, "--records": wanted.records}
    for flag, uri in places.items():
        if (uri or flag == "--run") and not uri.startswith("gs://"):
            raise ConfigError(f"{flag} {uri!r}: expected gs://bucket/prefix: pods can't see this machine's folders")
    for assignment in wanted.assignments:
        key, _, value = (part.strip() for part in assignment.partition("="))
        if key == "model.weights" and value != "none" and not value.startswith("gs://"):
            raise ConfigError(f"--set {assignment}: expected gs://bucket/name: pods can't see this machine's files")


def _check(cluster: Cluster, overlay: str, wanted: Submission, job: Mapping[str, Any]) -> None:
    """The checks of `doctor`: those that fail are printed; raises ClusterError when one of them is in the way."""
    from deepfake_detector.cluster.doctor import check, to_text

    checks = check(
        cluster,
        overlay,
        image=wanted.image,
        run=wanted.run,
        videos=wanted.videos,
        pods=job["spec"]["parallelism"],
        spec=job["spec"]["template"]["spec"],
    )
    failed = [each for each in checks if not each.ok]
    if failed:
        print(to_text(failed), file=sys.stderr, flush=True)
    blocking = [each for each in failed if each.blocks]
    if blocking:
        raise ClusterError(f"{blocking[0].name}: {blocking[0].detail} ({blocking[0].remedy}): nothing was submitted")


def _cpus(templates: Sequence[Mapping[str, Any]], wanted: Submission) -> Cpus:
    limits = {}
    for stage in ("train", "preprocess"):
        job = stage_job(templates, stage, "the overlay")
        limits[stage] = cpu_limit_of(with_resources(job, wanted.resources) if stage == wanted.stage else job)
    return Cpus(train_threads=limits["train"], decoders=limits["preprocess"])


def _require_ready(run: Storage, wanted: Submission, active: Mapping[Stage, Job]) -> None:
    """The stages before this one are finished, and none is at work that does the same."""
    exporters: dict[JobStage, Stage] = {"train": "export", "export": "train"}
    other = exporters.get(wanted.stage)
    if other and other in active:
        raise ClusterError(
            f"job {name_of(active[other])}: at work on {run.uri}, expected its end: it exports the model, too "
            f"(make {other} RUN={run.uri} attaches to it, make stop RUN={run.uri} ends it)"
        )
    if wanted.stage == "train":
        _require_records(run, wanted, active)
    if wanted.stage == "export" and not run.exists(layout.TRAINED):
        raise DataError(
            f"{run.uri}/{layout.TRAINED}: not found, expected a finished training (make train RUN={run.uri})"
        )


def _require_records(run: Storage, wanted: Submission, active: Mapping[Stage, Job]) -> None:
    if not wanted.records and not has_config(run):
        raise DataError(
            f"{run.uri}: holds no records, expected make preprocess VIDEOS=gs://... RUN={run.uri} first "
            "(or RECORDS=gs://..., the finished records of another run)"
        )
    records = _records_of(run, wanted)
    if records.exists(layout.RECORDS_SUMMARY):
        if not has_begun(run, "train"):  # else it goes on with the records that it has
            _require_no_retry_at_work(run, records, active)
        return
    shards = load_config(records).data.shards
    done = sum(layout.is_shard_report(entry.name) for entry in records.list("records/"))
    at_work = "is at work" if "preprocess" in active else "has not finished"
    raise DataError(
        f"{records.uri}: preprocessing {at_work}: {done} of {shards} shards done, expected all "
        f"(make preprocess RUN={records.uri} goes on)"
    )


def _require_no_retry_at_work(run: Storage, records: Storage, active: Mapping[Stage, Job]) -> None:
    require_no_half_done_retry(records, f"make preprocess RUN={records.uri} {RETRY_LOST}=1")
    job = active.get("preprocess")
    number = retry_of(job) if job is not None and records.uri == run.uri else 0
    if job is not None and number and not is_done(run, "preprocess", number):  # its plan is not there yet
        raise DataError(f"job {name_of(job)}: tries lost videos of {run.uri} again: expected its end before training")


def _require_own_round(run: Storage, retry: NextRetry, active: Mapping[Stage, Job]) -> None:
    """No training is at work, and no other round of preprocessing."""
    rounds = {stage: retry_of(job) for stage, job in active.items()}
    if "train" in active or rounds.get("preprocess", retry.number) != retry.number:
        job = active.get("train") or active["preprocess"]
        raise ClusterError(
            f"job {name_of(job)}: at work on {run.uri}, expected its end before lost videos are tried again "
            f"(make stop RUN={run.uri} ends it)"
        )


def _records_of(run: Storage, wanted: Submission) -> Storage:
    return open_storage(wanted.records) if wanted.records else records_storage(run)


def _fill(
    template: Mapping[str, Any],
    run: Storage,
    wanted: Submission,
    namespace: str,
    retry: NextRetry | None,
    settlement: Settlement,
) -> dict[str, Any]:
    config = settlement.config
    shards = retry.shards if retry else config.data.shards
    trainers = config.train.workers + config.operations.spares
    completions = {"preprocess": shards, "train": trainers, "export": 1}[wanted.stage]
    return fill(
        template,
        stage=wanted.stage,
        run_uri=run.uri,
        namespace=namespace,
        image=wanted.image,
        completions=completions,
        parallelism=min(wanted.pods, completions) if wanted.stage == "preprocess" else completions,
        settings_fingerprint=settlement.fingerprint(wanted.stage),
        resources=wanted.resources,
        retry=retry.number if retry else 0,
    )
