"""Lost videos are tried again: a further round of preprocessing, beside the finished ones, which stay as they are.

Its folder, RUN/retries/00001 for the first, is laid out like a run: index 0 writes its plan, every shard its records
and report, and the last one the summary with which it counts. `core.retry` says what is tried again, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepfake_detector.adapters.rounds import Round, finished_rounds, read_reports, round_storage
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config
from deepfake_detector.core.datasets import FoundVideo, find_videos
from deepfake_detector.core.errors import ConfigError, DataError
from deepfake_detector.core.markers import PlanSummary, RecordsSummary, ShardReport
from deepfake_detector.core.outcomes import Outcome, PlannedVideo, VideoOutcome
from deepfake_detector.core.plan import Plan, count_videos
from deepfake_detector.core.retry import (
    Retry,
    arrivals,
    describe,
    describe_left,
    describe_never,
    latest,
    missing_files,
    only_missing,
    plan_retry,
    shards_for,
)
from deepfake_detector.stages.plan import commit_plan, committed_plan, list_sizes, load_plan
from deepfake_detector.stages.runs import has_config, load_config, records_storage, trained_records
from deepfake_detector.stages.summary import require_untrained


@dataclass(frozen=True)
class NextRetry:
    """The retry to be done now.

    number: from 1; shards: 0 where nothing that is lost may be tried again; why_none: lines for people that say so.
    """

    number: int
    shards: int
    why_none: tuple[str, ...] = ()


def next_retry(run: Storage, asked: str = "a retry") -> NextRetry:
    """The retry that has begun and not finished, or else a new one. Writes nothing.

    asked: the word with which the user asked for it, for messages. The videos' folder is listed only where nothing but
    missing files is lost. Raises DataError before preprocessing has finished, ConfigError when the run has no records
    of its own or training has begun on them, and what `make_retry_plan` raises of the folder.
    """
    records = records_storage(run) if has_config(run) else run
    if records.uri != run.uri:
        raise ConfigError(
            f"{run.uri}: uses the records of {records.uri}: expected lost videos to be tried again there, before any "
            "training on them"
        )
    rounds = finished_rounds(run)
    if not rounds:
        raise DataError(
            f"{run.uri}/{layout.RECORDS_SUMMARY}: not found, expected preprocessing to finish before lost videos are "
            f"tried again (the same command without {asked})"
        )
    require_untrained(run, asked)
    number, config = len(rounds), load_config(run)
    place = round_storage(run, number)
    if place.exists(layout.PLAN):
        return NextRetry(number, committed_plan(place, config).shards)
    summary = rounds[-1].summary
    shards, left = shards_for(summary, config.data), describe_never(summary)
    if only_missing(summary):
        retry, _ = _plan(run, config, rounds, _reports(rounds))
        shards, left = shards if retry.videos else 0, describe_left(retry)
    if shards:
        return NextRetry(number, shards)
    return NextRetry(number, 0, (_nothing_to_try(run, summary), *(f"  {line}" for line in left)))


def _nothing_to_try(run: Storage, summary: RecordsSummary) -> str:
    some = summary.outcomes.keys() - {Outcome.OK}
    return f"{run.uri}: no {'lost video may be tried again' if some else 'video is lost, nothing to try again'}"


def retries_trained_on(run: Storage, *, look: bool) -> int | None:
    """How many retries the run's training has, where a further one has nothing to add to it.

    None where training has not begun on records of the run's own, or where something could be tried that none of these
    retries has tried: all that is lost where training began before any retry, or a missing file that has come since.
    look: whether to list the videos for such files; raises what `make_retry_plan` raises of their folder.
    """
    from deepfake_detector.training.dataset import records_of

    fingerprint, rounds = trained_records(run), finished_rounds(run)
    if fingerprint is None or not rounds or records_storage(run).uri != run.uri:
        return None
    reports = _reports(rounds)
    trained_on = len(records_of(rounds, reports, fingerprint).rounds)
    rounds, reports = rounds[:trained_on], reports[:trained_on]
    tried = {video.key for its in reports[1:] for report in its for video in report.videos}
    retry, _ = _plan(run, load_config(run), rounds, reports, look=look)
    return None if any(video.key not in tried for video in retry.videos) else trained_on - 1


def make_retry_plan(run: Storage, config: Config, number: int) -> PlanSummary:
    """Plan retry `number` and commit its plan, which is kept once it is there.

    The videos' folder is listed only where a file was missing when the others were planned. Raises ConfigError when
    the plan that is there was made with other settings, or training has begun; DataError when the round before it has
    not finished, when there is nothing to try, and for what `find_videos` refuses; NotFoundError and StorageError
    where the videos can't be listed.
    """
    place = round_storage(run, number)
    if place.exists(layout.PLAN):
        return committed_plan(place, config)
    require_untrained(run)
    rounds = finished_rounds(run)
    if len(rounds) != number:
        raise DataError(f"{place.uri}: {len(rounds)} finished rounds before it: expected {number}")
    # A bucket that is gone, or refuses us, ends the retry here: once it is planned, no training begins before its end.
    next(iter(open_storage(config.data.videos, patient=True).list()), None)
    retry, outcomes = _plan(run, config, rounds, _reports(rounds))
    if not retry.videos:  # there were some when the retry was asked for
        raise DataError("; ".join([_nothing_to_try(run, rounds[-1].summary), *describe_left(retry)]))
    shards = shards_for(rounds[-1].summary, config.data)
    groups = len({video.group for video in retry.videos})
    plan = Plan(retry.videos, groups, count_videos(retry.videos), warnings=[])
    return commit_plan(place, config, plan, shards=shards, found=describe(retry, outcomes), lost=retry.left)


def describe_gain(run: Storage, number: int) -> str:
    """A line on what a finished retry has come to."""
    done = finished_rounds(run)[number]
    tried = [video for report in read_reports(done.storage, done.shards) for video in report.videos]
    won = sum(video.outcome is Outcome.OK for video in tried)
    return f"  retry {number}: {won} of {len(tried)} videos are no longer lost"


def _reports(rounds: Sequence[Round]) -> list[list[ShardReport]]:
    return [read_reports(each.storage, each.shards) for each in rounds]


def _plan(
    run: Storage, config: Config, rounds: Sequence[Round], reports: Sequence[list[ShardReport]], *, look: bool = True
) -> tuple[Retry, dict[str, VideoOutcome]]:
    """What a retry after these rounds tries and what it leaves; and by key the outcomes so far.

    look: whether missing files may have come.
    """
    planned, outcomes = _so_far(run, rounds, reports)
    found = _found(planned, outcomes, config) if look else []
    shards = max(1, shards_for(rounds[-1].summary, config.data))
    return plan_retry(planned, outcomes, found, shards, config.data, config.data.videos), outcomes


def _so_far(
    run: Storage, rounds: Sequence[Round], reports: Sequence[list[ShardReport]]
) -> tuple[dict[str, PlannedVideo], dict[str, VideoOutcome]]:
    """By key: all that was planned, and the latest outcome of every video."""
    planned: dict[str, PlannedVideo] = {}
    outcomes = list(load_plan(run)[0].lost)
    for each, its in zip(rounds, reports, strict=True):
        planned |= {video.key: video for video in load_plan(each.storage)[1]}
        outcomes += [video for report in its for video in report.videos]
    return planned, latest(outcomes)


def _found(planned: dict[str, PlannedVideo], outcomes: dict[str, VideoOutcome], config: Config) -> Sequence[FoundVideo]:
    """What the videos' folder holds now, and what was planned as if it were still there: its ties hold.

    Nothing where no missing file has come: the rest needs no second look. Where the plan of an earlier version does not
    tell the paths of missing files, only their keys tell whether any has.
    """
    missing = missing_files(planned, outcomes)
    if not missing:
        return []
    videos = open_storage(config.data.videos)
    sizes = list_sizes(videos)
    if not arrivals(missing, sizes) and all(video.path for video in missing.values()):
        return []
    return find_videos({video.path: 0 for video in planned.values()} | sizes, videos.read, videos.uri).videos
