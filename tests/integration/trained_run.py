"""A run as training leaves it, made in a second: synthetic records, one checkpoint, and all markers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deepfake_detector.adapters.records import RecordWriter, encode
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, fingerprint, stage_settings
from deepfake_detector.core.markers import (
    RecordFile,
    RecordsSummary,
    ShardReport,
    TrainedMarker,
    TrainState,
)
from deepfake_detector.core.outcomes import Outcome, VideoOutcome
from deepfake_detector.core.recipes import resolve
from deepfake_detector.core.sequences import FaceSequence, RecordEntry
from deepfake_detector.stages.runs import save_config

SETTINGS = ("data.shards=1", "sampling.frames=3", "faces.size=32", "train.workers=1", "model.lstm_units=8")
STEP = 7
VERSION = "0.1.0+test"
LEVELS = (110, 145)  # mean brightness of real and fake faces

Videos = Mapping[str, Sequence[tuple[str, int]]]  # split -> (key, label)


def usual_videos(each: int = 6) -> dict[str, list[tuple[str, int]]]:
    """`each` reals and fakes per split; fakes by two methods."""
    return {
        split: [(f"set/real/{split}{k}", 0) for k in range(each)]
        + [(f"set/method{k % 2}/{split}{k}", 1) for k in range(each)]
        for split in layout.SPLITS
    }


def make_trained_run(
    folder: Path,
    videos: Videos,
    lost: Sequence[VideoOutcome] = (),
    assignments: Sequence[str] = (),
    scale: float = 1.0,
) -> tuple[Storage, Config]:
    """scale: of the logits; negative ones rank the reals above the fakes."""
    run, config = open_storage(str(folder)), resolve("demo", [*SETTINGS, *assignments])
    save_config(run, config, {"recipe": "demo", "set": [], "videos": "", "records": ""})
    write_records(run, config, videos, lost)
    write_checkpoint(run, config, folder / "scratch-train", scale)
    return run, config


def marked(config: Config, stage: Any) -> dict[str, Any]:
    settings = stage_settings(config, stage)
    return {"settings": settings, "fingerprint": fingerprint(settings), "code_version": VERSION}


def write_records(run: Storage, config: Config, videos: Videos, lost: Sequence[VideoOutcome]) -> None:
    """Two tracks per video, two windows of the first; fakes are brighter, with enough noise to overlap."""
    random = np.random.default_rng(3)
    files, outcomes, counts = [], list(lost), {}
    for split in layout.SPLITS:
        path = Path(run.uri) / layout.shard_records(split, 0, 1)
        entries = []
        with RecordWriter(path) as writer:
            for key, label in videos[split]:
                for track, window in ((0, 0), (0, 1), (1, 0)):
                    payload = encode(sequence(config, track, window, label, random), context(key, label, split))
                    offset, length = writer.add(payload)
                    entries.append(
                        RecordEntry(
                            sample=f"{key}#{track}.{window}",
                            video=key,
                            group=key,
                            label=label,
                            track=track,
                            window=window,
                            offset=offset,
                            length=length,
                        )
                    )
                outcomes.append(VideoOutcome(key=key, label=label, split=split, outcome=Outcome.OK, tracks=2))
            name = layout.records(split, 0, 1, writer.crc32c)
            path.rename(Path(run.uri) / name)
            files.append(RecordFile(name=name, size=writer.size, crc32c=writer.crc32c, split=split, records=entries))
        counts[split] = {"real": sum(e.label == 0 for e in entries), "fake": sum(e.label for e in entries)}
    report = ShardReport(**marked(config, "preprocess"), shard=0, shards=1, files=files, videos=outcomes)
    run.write(layout.shard_report(0, 1), report.encode())
    table: dict[str, dict[str, int]] = {}
    for video in outcomes:
        label_name = {0: "real", 1: "fake", None: "unknown"}[video.label]
        row = table.setdefault(video.outcome, {})
        row[label_name] = row.get(label_name, 0) + 1
    summary = RecordsSummary(
        **marked(config, "preprocess"),
        shards=1,
        videos=len(outcomes),
        lost_fraction=len(lost) / max(len(outcomes), 1),
        outcomes=table,
        sequences=counts,
        frames_sampled=0,
        frames_detected=0,
        frames_filled=0,
        metadata_auc=0.55,
        warnings=["a warning with <markup> & more"],
    )
    run.write(layout.RECORDS_SUMMARY, summary.encode())


def sequence(config: Config, track: int, window: int, label: int, random: np.random.Generator) -> FaceSequence:
    frames, size = config.sampling.frames, config.faces.size
    level = random.normal(LEVELS[label], 18)
    images = []
    for _ in range(frames):
        image = np.clip(random.normal(level, 40, (size, size, 3)), 0, 255).astype(np.uint8)
        images.append(cv2.imencode(".jpg", image)[1].tobytes())
    return FaceSequence(
        track=track,
        window=window,
        images=images,
        frame_indices=list(range(frames)),
        timestamps=[k / 25 for k in range(frames)],
        boxes=[(0, 0, size, size)] * frames,
        scores=[0.9] * frames,
        present=[True] * frames,
        valid=[True] * frames,
    )


def context(key: str, label: int, split: str) -> dict[str, str | int | float]:
    dataset, method, identity = key.split("/")
    return {
        "sample_id": key,
        "dataset": dataset,
        "video_id": identity,
        "original_id": "",
        "group_id": key,
        "method": method,
        "label": label,
        "split": split,
        "fps": 25.0,
        "frame_count": 3,
        "size": 32,
        "codec": "h264",
        "source_checksum": "00000000",
        "preprocess_fingerprint": "",
    }


def bright_is_fake(config: Config, scale: float) -> Any:
    """The product's model, its last layer fitted by least squares to give brighter faces larger logits."""
    import keras

    from deepfake_detector.training.model import build

    keras.utils.clear_session()
    keras.utils.set_random_seed(5)
    model = build(config)
    features = keras.Model(model.input, model.get_layer("logit").input)
    random = np.random.default_rng(4)
    labels = np.arange(96) % 2
    shape = (len(labels), config.sampling.frames, config.faces.size, config.faces.size, 3)
    levels = random.normal(np.take(LEVELS, labels), 18)[:, None, None, None, None]
    seen = features(np.clip(random.normal(levels, 40, shape), 0, 255).astype(np.uint8)).numpy()
    centred = (seen - seen.mean(0)) / (seen.std(0) + 1e-6)
    weights = np.linalg.solve(centred.T @ centred + np.eye(seen.shape[1]), centred.T @ (labels * 2.0 - 1))
    kernel = 3 * scale * weights / (seen.std(0) + 1e-6)
    model.get_layer("logit").set_weights([kernel[:, None], np.array([-kernel @ seen.mean(0)])])
    return model


def write_checkpoint(run: Storage, config: Config, scratch: Path, scale: float) -> None:
    import keras

    from deepfake_detector.training.checkpoints import Checkpoints, weights_sha256
    from deepfake_detector.training.dataset import open_records

    model = bright_is_fake(config, scale)
    optimizer = keras.optimizers.SGD()
    optimizer.build(model.trainable_variables)
    records = open_records(run).fingerprint
    state = TrainState(
        step=STEP,
        epoch=1,
        best_step=STEP,
        best_loss=0.5,
        epochs_without_improvement=0,
        learning_rate_scale=1.0,
        loss_sum=0.0,
        correct_sum=0.0,
        samples=0,
        records_fingerprint=records,
        threads=1,
    )
    train = marked(config, "train")
    Checkpoints(run, scratch, train["settings"], VERSION, ["test"], 1).save(model, optimizer, state)
    marker = TrainedMarker(
        **train,
        step=STEP,
        epochs=1,
        best_step=STEP,
        best_loss=0.5,
        stopped="epochs=1 done",
        records=run.uri,
        records_fingerprint=records,
        weights_sha256=weights_sha256(model),
        machines=["test"],
    )
    run.write(layout.TRAINED, marker.encode())
