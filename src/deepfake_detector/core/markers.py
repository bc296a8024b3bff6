"""The documents that commit a stage's work, and the lines that describe a run. All are small JSON objects.

A marker is written after the data that it commits. It names the settings that its stage depends on, so that a
stage which finds its marker does nothing, and one made with other settings is refused by name of the setting.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from deepfake_detector.core.errors import CorruptError
from deepfake_detector.core.outcomes import VideoOutcome
from deepfake_detector.core.sequences import RecordEntry


class Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    def encode(self) -> bytes:
        """Indented JSON in field order, with a final newline: equal documents, equal bytes."""
        return (self.model_dump_json(indent=1) + "\n").encode()


class Marker(Document):
    """settings: dotted, as `config.stage_settings` gives them; code_version: of the writer."""

    settings: dict[str, Any]
    fingerprint: str
    code_version: str


class StoredFile(Document):
    """A committed object: name inside the run, bytes, CRC-32C (Castagnoli) as 8 hex digits."""

    name: str
    size: int
    crc32c: str


class PlanSummary(Marker):
    """Marker of the plan, and of each retry's. counts: split -> label ("real", "fake") -> videos.

    lost: planned-time losses; of a retry, the lost videos that it leaves alone.
    """

    videos: StoredFile
    found: list[str]  # one line for each layout that was found, for people
    shards: int
    groups: int
    counts: dict[str, dict[str, int]]
    lost: list[VideoOutcome]
    warnings: list[str]


class RecordFile(StoredFile):
    """One TFRecord file of a shard: its split, and its records in file order."""

    split: str
    records: list[RecordEntry]


class ShardReport(Marker):
    """Marker of a shard: every planned video of the shard, in plan order, with its outcome."""

    shard: int
    shards: int
    files: list[RecordFile]
    videos: list[VideoOutcome]


class RecordsSummary(Marker):
    """Marker of preprocessing, and of each retry: totals over all shards so far and the plan's own losses.

    Of a video that was tried again its last outcome counts.

    outcomes: outcome -> label ("real", "fake", "unknown") -> videos. sequences: split -> label -> records.
    lost_fraction: of the labelled videos. metadata_auc: AUC of a baseline that sees only size, rate, codec and
    duration; None where the training split, or the held-out ones together, lack a class.
    """

    shards: int
    videos: int
    lost_fraction: float
    outcomes: dict[str, dict[str, int]]
    sequences: dict[str, dict[str, int]]
    frames_sampled: int
    frames_detected: int
    frames_filled: int
    metadata_auc: float | None
    warnings: list[str]


class EpochMetrics(Document):
    """One line of logs/metrics.jsonl; loss and accuracy are of the natural logit at threshold 0."""

    epoch: int  # 1 is the first
    step: int  # global step at the epoch's end
    seconds: float
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    validation_auc: float | None
    sequences_per_second: float
    input_wait_fraction: float


class TrainState(Document):
    """What a resumed run needs beside the weights: all that decides what happens next."""

    step: int
    epoch: int
    best_step: int | None
    best_loss: float | None
    epochs_without_improvement: int
    learning_rate_scale: float
    loss_sum: float  # of the running epoch, so that its mean is exact after a resume
    correct_sum: float
    samples: int
    records_fingerprint: str
    threads: int
    seconds: float = 0.0  # spent in the running epoch
    exact: bool = True  # no worker came back on another kind of CPU, on which the bits may differ


class CheckpointMarker(Marker):
    """Commits one checkpoint: its files and the state that goes with them. machines: CPU model, flags that matter.

    That of step 0 has no files: it tells what training began with.
    """

    step: int
    state: TrainState
    files: list[StoredFile]
    machines: list[str]


INEXACT = "a worker came back on another kind of CPU: that an undisturbed run gives the same bits is no longer promised"


class TrainedMarker(Marker):
    """Training is complete. best_step names the checkpoint to export."""

    step: int
    epochs: int
    best_step: int
    best_loss: float | None
    stopped: str  # why: "epochs=20 done", "no better validation loss for 6 epochs"
    records: str  # URI of the run whose records were used
    records_fingerprint: str
    weights_sha256: str  # of the exported weights' raw bytes, in model order
    machines: list[str]
    exact: bool = True  # an undisturbed run gives the same bits: no worker came back on another kind of CPU


class DetectorManifest(Marker):
    """model/detector.json, marker of the export: all that prediction needs beside the SavedModel."""

    files: list[StoredFile]
    step: int
    slope: float  # calibrated probability = sigmoid(slope * logit + offset)
    offset: float
    prior: float  # share of fakes that the probability assumes
    validation_prior: float | None
    threshold: float  # verdict is fake at probability >= threshold
    threshold_from: str
    keras_version: str
    tensorflow_version: str
    config: dict[str, Any]  # sampling, faces and limits: the crop code's settings


Some = TypeVar("Some", bound=Document)


def decode(kind: type[Some], data: bytes, where: str) -> Some:
    """Parse a stored document; raises CorruptError naming `where` and the first field that is wrong."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        raise CorruptError(f"{where}: {field}: expected a valid {kind.__name__} ({first['msg']})") from None
