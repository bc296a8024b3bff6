"""Preprocessing of one shard: its videos to TFRecord files, and a report in which every video has its outcome.

The report is the shard's marker: records first, report last, and written once, since a pod that was given up may still
work beside its successor. Records that no report names are never read, and removed once the report is there. The shard
that finishes last writes the summary.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from deepfake_detector.adapters.machine import code_version, cpu_limit
from deepfake_detector.adapters.records import RecordWriter, encode
from deepfake_detector.adapters.rounds import round_storage
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, fingerprint, require_same, stage_settings
from deepfake_detector.core.errors import NotFoundError
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.markers import RecordFile, ShardReport, decode
from deepfake_detector.core.outcomes import Outcome, PlannedVideo, VideoOutcome
from deepfake_detector.core.sequences import RecordEntry
from deepfake_detector.stages.decoders import Decoders
from deepfake_detector.stages.decoding import Extract
from deepfake_detector.stages.plan import committed_plan, load_plan
from deepfake_detector.stages.sources import Sources
from deepfake_detector.stages.summary import finish

PROGRESS_SECONDS = 5.0  # storage takes about one write per second per name

Progress = Callable[[int, int, Mapping[str, int]], None]  # done, total, outcome -> videos

log = logging.getLogger(__name__)


def preprocess_shard(
    run: Storage,
    config: Config,
    shard: int,
    *,
    scratch: Path,
    retry: int = 0,
    on_progress: Progress | None = None,
    extract: Extract | None = None,
) -> ShardReport:
    """Make the shard's records and report, then the round's summary if this was the last shard.

    A shard that has its report does nothing but that last step, and removes records that the report does not name.
    Source videos are only read: in place when they are local, as copies in `scratch` when they are remote. retry: the
    round; 0 is the first preprocessing. extract: as in `Decoders`. Raises ConfigError when the report was made with
    other settings or training has begun before a retry, NotFoundError without a plan, StorageError.
    """
    place = round_storage(run, retry)
    shards = committed_plan(place, config).shards if retry else config.data.shards
    report = _stored(place, config, (shard, shards))
    if report is None:
        videos = [video for video in load_plan(place)[1] if video.shard == shard]
        on_progress = _both(on_progress, place, shard)
        report = _make_shard(place, config, (shard, shards), videos, scratch, on_progress, extract)
    _remove_others(place, report)
    finish(run, config, retry)
    return report


def _stored(place: Storage, config: Config, shard_of: tuple[int, int]) -> ShardReport | None:
    """The shard's report, if it is there. Raises ConfigError when it was made with other settings."""
    name = layout.shard_report(*shard_of)
    where = f"{place.uri}/{name}"
    try:
        report = decode(ShardReport, place.read(name), where)
    except NotFoundError:
        return None
    require_same(stage_settings(config, "preprocess"), report.settings, f"the report {where}")
    return report


def _make_shard(
    place: Storage,
    config: Config,
    shard_of: tuple[int, int],
    videos: list[PlannedVideo],
    scratch: Path,
    on_progress: Progress,
    extract: Extract | None,
) -> ShardReport:
    slots = max(min(config.operations.decoders or cpu_limit(), len(videos)), 1)
    with (
        _ShardFiles(scratch / "records", *shard_of) as files,
        Decoders(config, slots, extract) as decoders,
        Sources(open_storage(config.data.videos, patient=True), videos, scratch / "videos", slots) as sources,
    ):
        outcomes = _make_records(config, videos, files, decoders, sources, on_progress)
        return _commit(place, config, shard_of, files, outcomes)


def _make_records(
    config: Config,
    videos: list[PlannedVideo],
    files: _ShardFiles,
    decoders: Decoders,
    sources: Sources,
    on_progress: Progress,
) -> list[VideoOutcome]:
    outcomes: list[VideoOutcome] = []
    counts: dict[str, int] = {}
    settings = fingerprint(stage_settings(config, "preprocess"))
    on_progress(0, len(videos), counts)
    for video, extraction in zip(videos, decoders.map(sources.paths()), strict=True):
        context: dict[str, str | int] = {
            "dataset": video.dataset,
            "video_id": video.key,
            "original_id": video.original,
            "group_id": video.group,
            "method": video.method,
            "label": video.label,
            "split": video.split,
            "size": config.faces.size,
            "source_checksum": sources.release(video),
            "preprocess_fingerprint": settings,
        }
        if reason := sources.unread.pop(video.key, ""):
            extraction = Extraction(outcome=Outcome.DECODE_ERROR, detail=reason)
        files.add(video, extraction, context)
        outcomes.append(outcome_of(video, extraction))
        counts[extraction.outcome] = counts.get(extraction.outcome, 0) + 1
        if extraction.detail:
            log.info("%s: %s (%s)", video.key, extraction.outcome, extraction.detail)
        on_progress(len(outcomes), len(videos), counts)
    return outcomes


def _commit(
    place: Storage, config: Config, shard_of: tuple[int, int], files: _ShardFiles, outcomes: list[VideoOutcome]
) -> ShardReport:
    """Records first, report last; where another process has committed the shard meanwhile, its report counts."""
    shard, shards = shard_of
    settings = stage_settings(config, "preprocess")
    while (others := _stored(place, config, shard_of)) is None:
        own = ShardReport(
            settings=settings,
            fingerprint=fingerprint(settings),
            code_version=code_version(),
            shard=shard,
            shards=shards,
            files=files.commit(place),
            videos=outcomes,
        )
        if place.create(layout.shard_report(shard, shards), own.encode()):
            return own
    log.warning("shard %d of %d: another process has committed it meanwhile: its report counts", shard, shards)
    return others


def _remove_others(place: Storage, report: ShardReport) -> None:
    """Remove the shard's records that its report does not name, of whoever was late or died before a report."""
    named = {file.name for file in report.files}
    for split in layout.SPLITS:
        for entry in list(place.list(layout.shard_records(split, report.shard, report.shards))):
            if entry.name not in named:
                place.delete(entry.name)


def outcome_of(video: PlannedVideo, extraction: Extraction) -> VideoOutcome:
    """The video's line in the shard's report."""
    return VideoOutcome(
        key=video.key,
        label=video.label,
        split=video.split,
        outcome=extraction.outcome,
        detail=extraction.detail,
        tracks=extraction.tracks,
        sequences=len(extraction.sequences),
        frames_sampled=extraction.frames_sampled,
        frames_detected=extraction.frames_detected,
        frames_filled=extraction.frames_filled,
        metadata=extraction.metadata,
    )


class _ShardFiles:
    """The shard's TFRecord files in a local folder, one for each split that has records."""

    def __init__(self, folder: Path, shard: int, shards: int) -> None:
        self._folder, self._shard, self._shards = folder, shard, shards
        self._writers: dict[str, RecordWriter] = {}
        self._entries: dict[str, list[RecordEntry]] = {}
        self._open = ExitStack()

    def __enter__(self) -> _ShardFiles:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._open.close()
        finally:  # what a full disk refused once, it refuses again
            for split in self._writers:
                self._path(split).unlink(missing_ok=True)

    def add(self, video: PlannedVideo, extraction: Extraction, context: Mapping[str, str | int]) -> None:
        for sequence in extraction.sequences:
            sample = f"{video.key}#{sequence.track}.{sequence.window}"
            full = {
                **context,
                "sample_id": sample,
                "fps": float(extraction.metadata["fps"]),
                "frame_count": extraction.frame_count,
                "codec": str(extraction.metadata["codec"]),
            }
            if video.split not in self._writers:
                self._writers[video.split] = self._open.enter_context(RecordWriter(self._path(video.split)))
            offset, length = self._writers[video.split].add(encode(sequence, full))
            entry = RecordEntry(
                sample=sample,
                video=video.key,
                group=video.group,
                label=video.label,
                track=sequence.track,
                window=sequence.window,
                offset=offset,
                length=length,
            )
            self._entries.setdefault(video.split, []).append(entry)

    def commit(self, run: Storage) -> list[RecordFile]:
        """Upload the files; what the report says of them."""
        self._open.close()
        committed = []
        for split in sorted(self._writers, key=layout.SPLITS.index):
            writer = self._writers[split]
            name = layout.records(split, self._shard, self._shards, writer.crc32c)
            run.upload(self._path(split), name)
            committed.append(
                RecordFile(name=name, size=writer.size, crc32c=writer.crc32c, split=split, records=self._entries[split])
            )
        return committed

    def _path(self, split: str) -> Path:
        return self._folder / f"{split}-{self._shard:05d}.tfrecord"


def _both(on_progress: Progress | None, run: Storage, shard: int) -> Progress:
    """Tell the caller every time, and the run's progress object at most every PROGRESS_SECONDS and at the end."""
    written = float("-inf")

    def tell(done: int, total: int, outcomes: Mapping[str, int]) -> None:
        nonlocal written
        if on_progress:
            on_progress(done, total, outcomes)
        if done == total or time.monotonic() - written >= PROGRESS_SECONDS:
            document = {"done": done, "total": total, "outcomes": dict(sorted(outcomes.items()))}
            run.write(layout.progress("preprocess", shard), (json.dumps(document) + "\n").encode())
            written = time.monotonic()

    return tell
