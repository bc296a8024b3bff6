"""A run folder with finished records, made in milliseconds: no video is decoded."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from deepfake_detector.adapters.records import RecordWriter, encode
from deepfake_detector.adapters.storage import Storage, commit_bytes, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, fingerprint, override, stage_settings
from deepfake_detector.core.markers import PlanSummary, RecordFile, RecordsSummary, ShardReport
from deepfake_detector.core.outcomes import Outcome, PlannedVideo, VideoOutcome
from deepfake_detector.core.sequences import FaceSequence, RecordEntry
from deepfake_detector.stages.runs import save_config

VERSION = "test"
LABELS = ("real", "fake")
TINY = {
    "data.shards": 2,
    "sampling.frames": 2,
    "faces.size": 32,
    "model.lstm_units": 8,
    "train.global_batch": 8,
    "train.epochs": 2,
    "train.threads": 1,
}


def tiny(**changes: object) -> Config:
    """Settings that train in seconds; changes: section__name=value."""
    return override(Config(), TINY | {name.replace("__", "."): value for name, value in changes.items()}, "the test")


def make_run(folder: Path, config: Config, counts: Mapping[str, tuple[int, int]]) -> str:
    """Write config.json, a plan and records; counts: split -> (reals, fakes), one sequence each. Returns the URI.

    A fake has a brighter square in all of its frames, so that a model can learn the difference.
    """
    run = open_storage(str(folder))
    save_config(run, config, {"recipe": config.recipe, "set": [], "videos": "", "records": ""})
    videos = [
        _video(split, label, number, config.data.shards)
        for split, (reals, fakes) in counts.items()
        for label, count in enumerate((reals, fakes))
        for number in range(count)
    ]
    _write_plan(run, config, videos)
    settings = stage_settings(config, "preprocess")
    common = {"settings": settings, "fingerprint": fingerprint(settings), "code_version": VERSION}
    shards = config.data.shards
    for shard in range(shards):
        mine = [video for video in videos if video.shard == shard]
        files = [
            _write_file(folder, config, split, shard, [video for video in mine if video.split == split])
            for split in counts
        ]
        outcomes = [
            VideoOutcome(key=video.key, label=video.label, split=video.split, outcome=Outcome.OK, tracks=1, sequences=1)
            for video in mine
        ]
        report = ShardReport(shard=shard, shards=shards, files=files, videos=outcomes, **common)
        run.write(layout.shard_report(shard, shards), report.encode())
    frames = len(videos) * config.sampling.frames
    summary = RecordsSummary(
        shards=shards,
        videos=len(videos),
        lost_fraction=0.0,
        outcomes={"ok": _by_label(videos)},
        sequences={split: _by_label([video for video in videos if video.split == split]) for split in counts},
        frames_sampled=frames,
        frames_detected=frames,
        frames_filled=0,
        metadata_auc=None,
        warnings=[],
        **common,
    )
    run.write(layout.RECORDS_SUMMARY, summary.encode())
    return run.uri


def _video(split: str, label: int, number: int, shards: int) -> PlannedVideo:
    key = f"synthetic/{LABELS[label]}/{split}-{number:04d}"
    return PlannedVideo(
        key=key,
        path=f"{key}.mp4",
        label=label,
        group=key,
        dataset="synthetic",
        method=LABELS[label],
        split=split,
        shard=number % shards,
    )


def _by_label(videos: Sequence[PlannedVideo]) -> dict[str, int]:
    return {name: sum(video.label == label for video in videos) for label, name in enumerate(LABELS)}


def _write_plan(run: Storage, config: Config, videos: Sequence[PlannedVideo]) -> None:
    lines = "".join(json.dumps(asdict(video)) + "\n" for video in videos)
    stored = commit_bytes(run, gzip.compress(lines.encode(), mtime=0), layout.PLAN_VIDEOS)
    settings = stage_settings(config, "plan")
    splits = sorted({video.split for video in videos})
    plan = PlanSummary(
        settings=settings,
        fingerprint=fingerprint(settings),
        code_version=VERSION,
        videos=stored,
        found=["synthetic records"],
        shards=config.data.shards,
        groups=len(videos),
        counts={split: _by_label([video for video in videos if video.split == split]) for split in splits},
        lost=[],
        warnings=[],
    )
    run.write(layout.PLAN, plan.encode())


def _write_file(folder: Path, config: Config, split: str, shard: int, videos: Sequence[PlannedVideo]) -> RecordFile:
    path = folder / layout.shard_records(split, shard, config.data.shards)
    entries = []
    with RecordWriter(path) as writer:
        for video in videos:
            offset, length = writer.add(_payload(config, video))
            entries.append(
                RecordEntry(
                    sample=f"{video.key}#0.0",
                    video=video.key,
                    group=video.group,
                    label=video.label,
                    track=0,
                    window=0,
                    offset=offset,
                    length=length,
                )
            )
    name = layout.records(split, shard, config.data.shards, writer.crc32c)
    path.rename(folder / name)
    return RecordFile(name=name, size=writer.size, crc32c=writer.crc32c, split=split, records=entries)


def _payload(config: Config, video: PlannedVideo) -> bytes:
    import cv2

    frames, size = config.sampling.frames, config.faces.size
    draw = np.random.default_rng([ord(letter) for letter in video.key])
    image = draw.integers(60, 140, (size // 4, size // 4, 3), np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    if video.label:
        image[size // 4 : size // 2, size // 4 : size // 2] += 60
    images = []
    for _ in range(frames):
        noisy = np.clip(image + draw.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
        _, encoded = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, config.faces.jpeg_quality])
        images.append(encoded.tobytes())
    sequence = FaceSequence(
        track=0,
        window=0,
        images=images,
        frame_indices=list(range(frames)),
        timestamps=[index / 25 for index in range(frames)],
        boxes=[(0, 0, size, size)] * frames,
        scores=[0.9] * frames,
        present=[True] * frames,
        valid=[True] * frames,
    )
    context: dict[str, str | int | float] = {
        "sample_id": f"{video.key}#0.0",
        "dataset": video.dataset,
        "video_id": video.key,
        "original_id": video.original,
        "group_id": video.group,
        "method": video.method,
        "label": video.label,
        "split": video.split,
        "fps": 25.0,
        "frame_count": frames,
        "size": size,
        "codec": "h264",
        "source_checksum": "",
        "preprocess_fingerprint": "",
    }
    return encode(sequence, context)
