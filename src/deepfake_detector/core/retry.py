"""Which lost videos are tried again, and in which split and shard: a pure function of the plans and the outcomes.

Preprocessing goes by rounds. Round 0 plans all videos; each retry (1, 2, ...) plans only some of those that are still
lost, and of every video the outcome of its latest round counts.

Worth another try is what has a place in the plan, whatever it was lost by: a file may have been replaced, memory or
time may suffice today, and a video that is as it was costs what it did before. So is a labelled video whose file was
missing when the others were planned, once there is one at the path where it was missed: it joins the split of those
that share a source with it, and stays lost where they lie in two splits. A video without a label, or with a name that
no run can fetch, is left alone: a label given since may tie groups together that are in different splits already,
which only a new plan can undo.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from deepfake_detector.core.config import Data
from deepfake_detector.core.datasets import FoundVideo
from deepfake_detector.core.markers import RecordsSummary
from deepfake_detector.core.outcomes import Outcome, PlannedVideo, VideoOutcome
from deepfake_detector.core.plan import draw_split, group_videos, require_closed

NEVER_AGAIN = {
    Outcome.UNLABELLED: "had no label when the videos were planned: a new RUN plans them anew",
    Outcome.BAD_NAME: "the name is no path, which no run can fetch",
}
NOT_THERE = "still not there"
UNPLANNED = "unplanned:"  # begins the stand-in keys of files that the run knows nothing of; no data set's name does
BETWEEN = "shares a source with videos of different splits, or has another label now: a new RUN plans it anew"


@dataclass(frozen=True)
class Retry:
    """videos: tried again, sorted by key; left: the other lost ones, `detail` says why they are left alone."""

    videos: list[PlannedVideo]
    left: list[VideoOutcome]


def worth_trying(summary: RecordsSummary) -> int:
    """How many videos a retry may try: all lost ones, save those that it never tries."""
    passed_over = (Outcome.OK, *NEVER_AGAIN)
    return sum(sum(labels.values()) for outcome, labels in summary.outcomes.items() if outcome not in passed_over)


def only_missing(summary: RecordsSummary) -> bool:
    """Whether all that a retry may try are missing files: it depends on the folder then whether it tries any."""
    return 0 < worth_trying(summary) == sum(summary.outcomes.get(Outcome.MISSING_FILE, {}).values())


def shards_for(summary: RecordsSummary, data: Data) -> int:
    """Shards of the retry that follows: known before its plan is made, and as many as before where there is work."""
    return min(data.shards, worth_trying(summary))


def latest(outcomes: Iterable[VideoOutcome]) -> dict[str, VideoOutcome]:
    """key -> the last outcome of the video; outcomes: in the order of rounds."""
    return {video.key: video for video in outcomes}


def missing_files(planned: Mapping[str, PlannedVideo], outcomes: Mapping[str, VideoOutcome]) -> dict[str, VideoOutcome]:
    """key -> outcome of the labelled videos that have no place in a plan, as their files were not there."""
    return {
        key: outcome
        for key, outcome in outcomes.items()
        if key not in planned and outcome.outcome is Outcome.MISSING_FILE and outcome.label is not None
    }


def arrivals(missing: Mapping[str, VideoOutcome], there: Iterable[str]) -> dict[str, str]:
    """key -> path of the missing files that are there by now; there: paths of all files.

    They are known by the paths at which they were missed: a key is made of as much of a path as tells the files of one
    listing apart, so that another file of the same name changes it. Paths compare as `claims.Listing` does it, since
    macOS stores decomposed names.
    """
    names = {name: name for name in sorted(there)}
    composed = {unicodedata.normalize("NFC", name): name for name in names}
    found = {
        key: names.get(video.path) or composed.get(unicodedata.normalize("NFC", video.path))
        for key, video in missing.items()
    }
    return {key: path for key, path in found.items() if path}


def plan_retry(
    planned: Mapping[str, PlannedVideo],
    outcomes: Mapping[str, VideoOutcome],
    found: Sequence[FoundVideo],
    shards: int,
    data: Data,
    where: str,
) -> Retry:
    """Divide the lost videos into those that are tried again and those that are left alone.

    planned: key -> video, of all rounds so far; outcomes: key -> latest outcome of every video, never planned ones
    included; found: what the folder holds now, which matters to videos whose file was missing; where: the folder, for
    messages. A video keeps its split and group, and no group crosses splits. The result does not depend on the order
    of its inputs.
    """
    lost = {key: outcome for key, outcome in sorted(outcomes.items()) if outcome.outcome is not Outcome.OK}
    missing = _with_paths(missing_files(planned, lost), planned, found)
    came = arrivals(missing, (video.path for video in found))
    known = _as_recorded(planned, came, found)
    arrived = {video.key: video for video in _arrived(planned, missing, known, data)} if came else {}
    again = [arrived.get(key) or planned[key] for key in lost if key in planned or key in arrived]
    require_closed([*planned.values(), *arrived.values()], where)
    # One label after the other, so that each shard gets its part of both.
    dealt = sorted(again, key=lambda video: (video.label, video.key))
    videos = [replace(video, shard=number % shards) for number, video in enumerate(dealt)]
    left = [
        replace(outcome, detail=NEVER_AGAIN.get(outcome.outcome) or (BETWEEN if key in came else NOT_THERE))
        for key, outcome in lost.items()
        if key not in planned and key not in arrived
    ]
    return Retry(sorted(videos, key=lambda video: video.key), left)


def describe(retry: Retry, outcomes: Mapping[str, VideoOutcome]) -> list[str]:
    """Lines for people; outcomes: the latest ones before the retry."""
    again = Counter(str(outcomes[video.key].outcome) for video in retry.videos)
    counted = ", ".join(f"{name} {count}" for name, count in sorted(again.items()))
    return [f"tried again: {counted or 'none'}", *describe_left(retry)]


def describe_left(retry: Retry) -> list[str]:
    """A line for each reason why videos are left alone."""
    return _left_alone(Counter((str(outcome.outcome), outcome.detail) for outcome in retry.left))


def describe_never(summary: RecordsSummary) -> list[str]:
    """As `describe_left`, of the lost videos that no retry tries."""
    counts = {outcome: sum(summary.outcomes.get(outcome, {}).values()) for outcome in NEVER_AGAIN}
    return _left_alone({(str(outcome), NEVER_AGAIN[outcome]): count for outcome, count in counts.items() if count})


def _left_alone(counts: Mapping[tuple[str, str], int]) -> list[str]:
    return [f"not tried again: {name} {count} ({detail})" for (name, detail), count in sorted(counts.items())]


def _with_paths(
    missing: Mapping[str, VideoOutcome], planned: Mapping[str, PlannedVideo], found: Iterable[FoundVideo]
) -> dict[str, VideoOutcome]:
    """Where the plan of an earlier version tells no path of a missing file, that of the file which has its key now."""
    known = {video.path for video in planned.values()}
    by_key = {video.key: video.path for video in found if video.path not in known}
    return {key: replace(video, path=video.path or by_key.get(key, "")) for key, video in missing.items()}


def _as_recorded(
    planned: Mapping[str, PlannedVideo], came: Mapping[str, str], found: Iterable[FoundVideo]
) -> list[FoundVideo]:
    """What is there now, under the keys of the run."""
    keys = {video.path: key for key, video in planned.items()} | {path: key for key, path in came.items()}
    now = {video.key: keys.get(video.path, UNPLANNED + video.path) for video in found}
    return [replace(video, key=now[video.key], original=now.get(video.original, video.original)) for video in found]


def _arrived(
    planned: Mapping[str, PlannedVideo],
    missing: Mapping[str, VideoOutcome],
    found: Sequence[FoundVideo],
    data: Data,
) -> Iterator[PlannedVideo]:
    """The missing videos that are there now and fit into one split, in it (their shard is still open)."""
    everything = _tied_as_planned(planned, found)
    groups = group_videos(everything)
    members: dict[str, list[FoundVideo]] = defaultdict(list)
    for video in everything:
        members[groups[video.key]].append(video)
    for group, videos in sorted(members.items()):
        new = [video for video in videos if video.key in missing and missing[video.key].label == video.label]
        old = sorted((planned[video.key] for video in videos if video.key in planned), key=lambda video: video.key)
        splits = {video.split for video in old} | {video.split for video in new if video.split}
        if not new or len(splits) > 1:
            continue
        split = splits.pop() if splits else draw_split(group, data)
        for video in new:
            yield PlannedVideo(
                key=video.key,
                path=video.path,
                label=video.label,
                group=old[0].group if old else group,
                dataset=video.dataset,
                method=video.method,
                original="" if video.original.startswith(UNPLANNED) else video.original,
                split=split,
                shard=0,
            )


def _tied_as_planned(planned: Mapping[str, PlannedVideo], found: Iterable[FoundVideo]) -> list[FoundVideo]:
    """What is there now and all that was planned, each planned video tied to its group by the group's name."""
    by_key = {video.key: video for video in found}
    tied = [video for video in by_key.values() if video.key not in planned]
    for key, video in planned.items():
        now = by_key.get(key)
        tied.append(
            FoundVideo(
                key=key,
                path=video.path,
                size=now.size if now else 0,
                label=video.label,
                dataset=video.dataset,
                method=video.method,
                identities=(*(now.identities if now else ()), video.group),
                original=video.original,
            )
        )
    return tied
