"""The rounds of preprocessing in a run: the first, in the run's own folder, and the retries, each in one of its own.

A round is finished when its records/summary.json is there, which holds the totals over all rounds up to it: the last
one tells what the run has come to. A retry begins when the rounds before it are finished, so that at most the last one
is half done; its records do not count until it is finished.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import DataError, NotFoundError
from deepfake_detector.core.markers import RecordsSummary, ShardReport, decode

EITHER_COMMAND = "RETRY_LOST=1 on a cluster, --retry-lost on one machine,"
READERS = 8  # reports read at a time: one takes about 50 ms from a bucket


@dataclass(frozen=True)
class Round:
    """A finished round. storage: its folder; shards: its own; summary: the totals after it."""

    number: int
    storage: Storage
    shards: int
    summary: RecordsSummary

    @property
    def prefix(self) -> str:
        """What names inside the round begin with, seen from the run."""
        return f"{layout.retry(self.number)}/" if self.number else ""


def round_storage(run: Storage, number: int) -> Storage:
    """The folder of a round; 0 is the run's own."""
    return open_storage(f"{run.uri}/{layout.retry(number)}") if number else run


def finished_rounds(run: Storage) -> list[Round]:
    """All finished rounds in order; none before preprocessing has finished."""
    rounds: list[Round] = []
    shards = 0
    while True:
        place = round_storage(run, len(rounds))
        try:
            data = place.read(layout.RECORDS_SUMMARY)
        except NotFoundError:
            return rounds
        summary = decode(RecordsSummary, data, f"{place.uri}/{layout.RECORDS_SUMMARY}")
        rounds.append(Round(len(rounds), place, summary.shards - shards, summary))
        shards = summary.shards


def load_summary(run: Storage) -> RecordsSummary:
    """The totals of preprocessing, retries included; raises NotFoundError when it has not finished."""
    rounds = finished_rounds(run)
    if not rounds:
        raise NotFoundError(f"{run.uri}/{layout.RECORDS_SUMMARY}: not found, expected finished records")
    return rounds[-1].summary


def read_reports(place: Storage, shards: int) -> list[ShardReport]:
    """The reports of all shards of the round in `place`, in order."""
    names = [layout.shard_report(shard, shards) for shard in range(shards)]
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(place.read, names)
        return [decode(ShardReport, data, f"{place.uri}/{name}") for name, data in zip(names, found, strict=True)]


def half_done_retry(run: Storage) -> int:
    """The number of the retry that has been planned and is not finished; 0 where there is none."""
    number = len(finished_rounds(run))
    return number if number and round_storage(run, number).exists(layout.PLAN) else 0


def require_no_half_done_retry(run: Storage, command: str = EITHER_COMMAND) -> None:
    """Raise DataError where a retry has begun and is not finished; command: what the user can type to go on with it.

    To be asked before a training begins. Its processes may be at work: a training that left it out would find other
    records when it goes on after an interruption, and one that waits a little has more of them.
    """
    number = half_done_retry(run)
    if number:
        place = round_storage(run, number).uri
        raise DataError(
            f"{place}: retry {number} of lost videos has begun and not finished: expected its end before training "
            f"({command} goes on; without {place} it never was)"
        )
