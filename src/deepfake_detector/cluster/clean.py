"""Ending a run's work in the cluster, and removing what it left there and in the bucket."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

from tqdm import tqdm

from deepfake_detector.adapters.cluster import Cluster
from deepfake_detector.adapters.storage import Entry, Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_OK, ClusterError, ConfigError, NotFoundError
from deepfake_detector.core.jobspec import is_over, retry_of, run_selector
from deepfake_detector.core.pods import COMPONENT, name_of
from deepfake_detector.stages.runs import has_config, load_given

UNSEEN = "Jobs in other namespaces may not be listed by this user: make sure that none of them works on this run."
THREADS = 8  # a deletion is one request, and waits for the network

Write = Callable[[str], None]
Ask = Callable[[str], str]


def stop(cluster: Cluster, run_uri: str, *, write: Write = print) -> int:
    """End the run's work: its unfinished Jobs are deleted, their pods get SIGTERM and their grace period.

    Returns 0 when the pods are gone. Nothing in the bucket changes: the same submission goes on. Raises ClusterError.
    """
    run = open_storage(run_uri)
    living = [job for job in cluster.jobs(run_selector(run.uri)) if not is_over(job)]
    if not living:
        write(f"{run.uri}: no Job of it is at work, nothing to stop")
        return EXIT_OK
    for job in living:
        cluster.delete_job(name_of(job))
        write(f"stopped job {name_of(job)}")
    stages = " and ".join(f"make {_stage(job)}" for job in living)
    again = " RETRY_LOST=1" if any(map(retry_of, living)) else ""
    write(f"what was done is kept: the same {stages} RUN={run.uri}{again} goes on from there")
    return EXIT_OK


def clean(
    cluster: Cluster, run_uri: str, *, data: bool = False, yes: bool = False, ask: Ask = input, write: Write = print
) -> int:
    """Remove the run's Jobs and pods from the cluster; with `data` also all that the run consists of in storage.

    data: what is there is listed first, and the run's name is asked for by `ask`, unless `yes`. Only what
    `core.layout` names is deleted, config.json last, so that an interrupted clean goes on; videos never are. Returns
    0. Raises ClusterError while a Job of the run is at work: in this namespace, and with `data` in any other one, as
    far as this user may list them; NotFoundError when there is no run, ConfigError when the answer is another one or
    the videos are among the run's data.
    """
    run = open_storage(run_uri)
    jobs, seen = _jobs_at_rest(cluster, run, everywhere=data)
    own = _own_objects(run) if data else []
    if data:
        if not _agreed(run, own, "" if seen else UNSEEN, yes, ask, write):
            raise ConfigError(f"nothing was removed: expected the run's name, {_name(run)!r}")
        jobs, _ = _jobs_at_rest(cluster, run, everywhere=True)  # the question may have been open for long
    for job in jobs:
        cluster.delete_job(name_of(job), uid=job["metadata"]["uid"])
        write(f"removed job {name_of(job)}")
    if not jobs:
        write(f"{run.uri}: no Jobs in {cluster}")
    if data:
        _delete(run, own)
        write(f"removed {len(own)} objects from {run.uri}")
    else:
        write(f"data in {run.uri} is kept (make clean RUN={run.uri} DATA=1 removes it)")
    return EXIT_OK


def describe(run: Storage, own: Sequence[Entry], strange: Sequence[Entry]) -> list[str]:
    """What would be deleted, a folder a line, and what else is in the run's folder and stays."""
    by_folder: dict[str, list[int]] = defaultdict(list)
    for entry in own:
        folder, slash, _ = entry.name.partition("/")
        by_folder[folder + slash].append(entry.size)
    lines = [f"{run.uri} consists of {_amount(own)}:"]
    for folder, sizes in by_folder.items():
        lines.append(f"  {folder:<14}{len(sizes):>8} objects {sum(sizes) / 1e6:>12.1f} MB")
    if strange:
        lines.append(f"not of the run, and left alone: {strange[0].name} and the like, {_amount(strange)}")
    return lines


def _jobs_at_rest(cluster: Cluster, run: Storage, *, everywhere: bool) -> tuple[list[dict[str, Any]], bool]:
    """The run's Jobs in this namespace, none of them at work, nor `everywhere`; and whether that could be seen."""
    mine = cluster.jobs(run_selector(run.uri))
    others = cluster.all_jobs(run_selector(run.uri)) if everywhere else []
    for job in [*mine, *(others or [])]:
        if not is_over(job):
            namespace = job["metadata"].get("namespace", cluster.namespace)
            here = namespace == cluster.namespace
            raise ClusterError(
                f"{run.uri}: {name_of(job)} at work{'' if here else f' in namespace {namespace}'}: expected none "
                f"(make stop RUN={run.uri}{'' if here else f' NAMESPACE={namespace}'} ends it)"
            )
    return mine, others is not None


def _own_objects(run: Storage) -> list[Entry]:
    if not has_config(run):
        raise NotFoundError(f"{run.uri}/{layout.CONFIG}: not found, expected a run (nothing was removed)")
    own = [entry for entry in run.list() if _is_own(entry.name)]
    if videos := load_given(run).get("videos"):
        _refuse_videos(run, open_storage(str(videos)).uri, own)
    return own


def _is_own(name: str) -> bool:
    return name == layout.CONFIG or name.startswith(layout.FOLDERS)


def _refuse_videos(run: Storage, videos: str, own: Sequence[Entry]) -> None:
    """A run may lie in the folder of the videos, but not they in the run's."""
    if not f"{videos}/".startswith(f"{run.uri}/"):
        return
    inside = next((entry.name for entry in own if f"{run.uri}/{entry.name}".startswith(f"{videos}/")), None)
    if inside:
        raise ConfigError(f"{run.uri}/{inside}: is among the videos in {videos}: expected them outside the run's data")


def _agreed(run: Storage, own: Sequence[Entry], warning: str, yes: bool, ask: Ask, write: Write) -> bool:
    strange = [entry for entry in run.list() if not _is_own(entry.name)]
    write("\n".join(describe(run, own, strange)))
    if yes:
        if warning:
            write(warning)
        return True
    question = f"Type the run's name, {_name(run)}, to delete this: "
    try:
        return ask(f"{warning}\n{question}" if warning else question).strip() == _name(run)
    except EOFError:
        raise ConfigError(
            "nothing was removed: expected an answer on a terminal, or --yes (make clean YES=1)"
        ) from None


def _delete(run: Storage, own: Sequence[Entry]) -> None:
    """Markers first, so that no stage takes half of its data for all of it; the settings last."""
    names = [entry.name for entry in own if entry.name != layout.CONFIG]
    markers = [name for name in names if name.endswith(".json")]
    others = [name for name in names if not name.endswith(".json")]
    with ThreadPool(THREADS) as pool, tqdm(total=len(names), desc="clean", unit=" objects", disable=None) as bar:
        for batch in (markers, others):
            for _ in pool.imap_unordered(run.delete, batch):
                bar.update()
    run.delete(layout.CONFIG)


def _name(run: Storage) -> str:
    return run.uri.rstrip("/").rpartition("/")[2]


def _amount(entries: Sequence[Entry]) -> str:
    return f"{len(entries)} objects, {sum(entry.size for entry in entries) / 1e6:.1f} MB"


def _stage(job: dict[str, Any]) -> str:
    return str((job["metadata"].get("labels") or {}).get(COMPONENT, "submit"))
