"""Which processes run, in which order, and when one is started again: what Jobs do in a cluster."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from deepfake_detector.adapters.machine import cpu_limit
from deepfake_detector.adapters.rounds import load_summary, require_no_half_done_retry, round_storage
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import (
    EXIT_OK,
    EXIT_PERMANENT,
    EXIT_RETRY,
    EXIT_TERMINATED,
    EXIT_UNAVAILABLE,
    DataError,
)
from deepfake_detector.core.topology import PORTS
from deepfake_detector.display import PreprocessDisplay, TrainDisplay, describe_records
from deepfake_detector.local.processes import Job, JobError, Processes, free_blocks, module
from deepfake_detector.stages.commit_export import tidy_up
from deepfake_detector.stages.retry import NextRetry, describe_gain, next_retry, retries_trained_on
from deepfake_detector.stages.runs import has_begun, records_storage
from deepfake_detector.supervisor.child import End

POLL_SECONDS = 0.1
RETRIES = 3  # of one shard, as a Job's backoffLimitPerIndex
RETRY_LOST = "--retry-lost"  # as the user types it
RESTART_SECONDS = (0.2, 5.0)  # first and longest pause before a supervisor is started again


@dataclass(frozen=True)
class Commands:
    """What the pods of each stage run."""

    preprocess: Sequence[str] = module("jobs.preprocess")
    train: Sequence[str] = module("jobs.train")


def run_local(
    run: Storage,
    config: Config,
    *,
    retry_lost: bool = False,
    verbose: bool = False,
    commands: Commands | None = None,
) -> int:
    """Preprocess, train and export a run whose settings are stored; finished stages start nothing. Returns 0.

    retry_lost: try the lost videos of finished preprocessing again before training; one that has begun goes on, unless
    there is something to try that it has not. verbose: the jobs' own output on the terminal. Raises JobError with the
    error of the job that failed and its status, ConfigError, DataError and StorageError. Ctrl-C and SIGTERM end every
    job; the same call goes on.
    """
    exported = run.exists(layout.DETECTOR)  # the videos may be gone then
    trained_on = retries_trained_on(run, look=not exported) if retry_lost else None
    retry = next_retry(run, RETRY_LOST) if retry_lost and trained_on is None else None
    if exported:
        tidy_up(run)  # after an export that died before it could
        print(f"{run.uri}/{layout.MODEL}: done before, nothing to do")
        return EXIT_OK
    if trained_on is not None:
        what = f"with retry {trained_on} of lost videos" if trained_on else "and no lost video may be tried again"
        print(f"{run.uri}: training has begun {what}: it goes on")
    commands = commands or Commands()
    with (
        tempfile.TemporaryDirectory(prefix="deepfake-detector-") as folder,
        _ended_by_signals(),
        Processes(Path(folder), verbose=verbose) as processes,
    ):
        scratch = Path(folder)
        if retry:
            _retry(run, retry, processes, scratch, commands.preprocess)
        if not run.exists(layout.TRAINED):
            _preprocess(run, config, processes, scratch, commands.preprocess)
        _train(run, config, processes, scratch, commands.train, verbose)
    print(f"model   {run.uri}/{layout.MODEL}\nreport  {run.uri}/{layout.REPORT}")
    return EXIT_OK


def _retry(run: Storage, retry: NextRetry, processes: Processes, scratch: Path, command: Sequence[str]) -> None:
    """The round that tries lost videos again, with every shard of it that has no report."""
    if not retry.shards:
        print("\n".join(retry.why_none))
        return
    print(f"preprocess: retry {retry.number} of lost videos in {retry.shards} shards")
    _run_round(run, retry.number, retry.shards, processes, scratch, command)
    print(describe_gain(run, retry.number))


def _preprocess(run: Storage, config: Config, processes: Processes, scratch: Path, command: Sequence[str]) -> None:
    """Every shard without a report, at most one process a CPU."""
    records = records_storage(run)
    if not records.exists(layout.RECORDS_SUMMARY):
        if records.uri != run.uri:
            raise DataError(f"{records.uri}/{layout.RECORDS_SUMMARY}: not found, expected finished records (--records)")
        if config.data.videos.startswith("gs://"):  # the jobs would wait for a bucket that does not exist
            open_storage(config.data.videos).exists("manifest.csv")
        print(f"preprocess: {config.data.videos} in {config.data.shards} shards")
        _run_round(run, 0, config.data.shards, processes, scratch, command)
    elif not has_begun(run, "train"):
        going_on = "the same command" if records.uri == run.uri else f"local --run {records.uri}"
        require_no_half_done_retry(records, f"{going_on} with {RETRY_LOST}")
    print("\n".join(describe_records(load_summary(records))))


def _run_round(
    run: Storage, number: int, shards: int, processes: Processes, scratch: Path, command: Sequence[str]
) -> None:
    """number: of the retry, or 0 for the first preprocessing."""
    place = round_storage(run, number)
    with PreprocessDisplay(place, shards) as display:
        stored = {entry.name for entry in place.list("records/")}
        waiting = deque(index for index in range(shards) if layout.shard_report(index, shards) not in stored)
        if not waiting:
            waiting.append(shards - 1)  # it finds its report, and writes the summary that is missing
        jobs = deque(_job("preprocess", index, run, scratch, command, RETRY=str(number)) for index in waiting)
        _run_shards(jobs, processes, display)
        display.last_look()
    if not place.exists(layout.RECORDS_SUMMARY):
        raise DataError(f"{place.uri}/{layout.RECORDS_SUMMARY}: not found, expected it from the last shard's job")


def _run_shards(waiting: deque[Job], processes: Processes, display: PreprocessDisplay) -> None:
    failures = dict.fromkeys((job.index for job in waiting), 0)
    running: set[int] = set()
    while waiting or running:
        while waiting and len(running) < cpu_limit():
            job = waiting.popleft()  # index 0 first: it makes the plan
            running.add(job.index)
            processes.start(job)
        for job, end in processes.ended():
            running.discard(job.index)
            if end.status == EXIT_OK:
                continue
            failures[job.index] += 1
            if end.status == EXIT_PERMANENT or failures[job.index] > RETRIES:
                raise _error(job, end)
            display.say(f"  {job.name}: {end.reason}; again ({failures[job.index]} of {RETRIES})")
            waiting.appendleft(job)
        display.refresh(running)
        time.sleep(POLL_SECONDS)


def _train(
    run: Storage, config: Config, processes: Processes, scratch: Path, command: Sequence[str], verbose: bool
) -> None:
    """One supervisor for each worker and spare, with ports of its own on 127.0.0.1; the first also runs the export."""
    workers, spares = config.train.workers, config.operations.spares
    more = f", {spares} to spare" if spares else ""
    print(f"train: {workers} {'process' if workers == 1 else 'processes'} x {config.train.threads} threads{more}")
    blocks = free_blocks(workers + spares, 1 + PORTS)
    peers = ",".join(f"127.0.0.1:{block}" for block in blocks)
    jobs = [
        _job(
            "train",
            index,
            run,
            scratch,
            command,
            PEERS=peers,
            POD_IP="127.0.0.1",
            TF_BASE_PORT=str(block + 1),
            VERBOSE="1" if verbose else "0",
        )
        for index, block in enumerate(blocks)
    ]
    with TrainDisplay(run) as display:
        _supervise(jobs, processes, config.operations.attempts, display)
        display.last_words()


def _supervise(jobs: Sequence[Job], processes: Processes, attempts: int, display: TrainDisplay) -> None:
    """Start a supervisor again that ended without success, as its Job would."""
    starts = {job.index: time.monotonic() for job in jobs}  # when each that does not run is due
    failures = dict.fromkeys(starts, 0)
    while starts or len(processes):
        for index in [index for index, due in starts.items() if due <= time.monotonic()]:
            del starts[index]
            processes.start(jobs[index])
        for job, end in processes.ended():
            if end.status == EXIT_OK:
                continue
            failures[job.index] += 1
            if end.status in (EXIT_PERMANENT, EXIT_UNAVAILABLE) or failures[job.index] >= attempts:
                raise _error(job, end)
            display.say(f"  {job.name}: {end.reason}; starting it again")
            pause = min(RESTART_SECONDS[0] * 2 ** (failures[job.index] - 1), RESTART_SECONDS[1])
            starts[job.index] = time.monotonic() + pause
        display.refresh()
        time.sleep(POLL_SECONDS)


def _job(stage: str, index: int, run: Storage, scratch: Path, command: Sequence[str], **environment: str) -> Job:
    folder = scratch / f"{stage}-{index}"
    folder.mkdir(exist_ok=True)
    common = {
        "RUN": run.uri,
        "JOB_COMPLETION_INDEX": str(index),
        "SCRATCH": str(folder),
        "SETTINGS": "",  # a user's own variable of that name is not meant
    }
    return Job(f"{stage} {index}", index, command, {**common, **environment})


def _error(job: Job, end: End) -> JobError:
    """The command's own error: a permanent one in the job's words, and a signal's status as a shell would say it."""
    if end.status == EXIT_UNAVAILABLE:
        return JobError(f"{job.name}: {end.reason}", EXIT_RETRY)
    prefix = f"exit {EXIT_PERMANENT}: "
    message = end.reason.removeprefix(prefix) if end.reason.startswith(prefix) else f"{job.name}: {end.reason}"
    return JobError(message, 128 - end.status if end.status < 0 else end.status)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the jobs as Ctrl-C does. Children die with this process even when it is killed."""
    former = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    print("stopped: the same command again goes on from here", file=sys.stderr)
    sys.exit(EXIT_TERMINATED)
