"""The markers of finished stages, without their work: what a test does not care about is filled in."""

from __future__ import annotations

from typing import Any

from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, Stage, fingerprint, stage_settings
from deepfake_detector.core.markers import (
    CheckpointMarker,
    DetectorManifest,
    PlanSummary,
    RecordsSummary,
    StoredFile,
    TrainedMarker,
    TrainState,
)


def made_with(config: Config | None, stage: Stage) -> dict[str, Any]:
    """The fields that all markers share; config: None where no test looks at the settings."""
    settings = stage_settings(config, stage) if config else {}
    return {"settings": settings, "fingerprint": fingerprint(settings), "code_version": "0"}


def plan_summary(config: Config | None = None, **fields: Any) -> PlanSummary:
    usual: dict[str, Any] = {
        "videos": StoredFile(name=layout.PLAN_VIDEOS, size=0, crc32c="00000000"),
        "found": [],
        "shards": 2,
        "groups": 0,
        "counts": {},
        "lost": [],
        "warnings": [],
    }
    return PlanSummary(**{**made_with(config, "plan"), **usual, **fields})


def records_summary(config: Config | None = None, **fields: Any) -> RecordsSummary:
    usual: dict[str, Any] = {
        "shards": 2,
        "videos": 10,
        "lost_fraction": 0.0,
        "outcomes": {"ok": {"real": 5, "fake": 4}, "no_face": {"fake": 1}},
        "sequences": {split: {"real": 3, "fake": 3} for split in layout.SPLITS},
        "frames_sampled": 100,
        "frames_detected": 100,
        "frames_filled": 0,
        "metadata_auc": None,
        "warnings": [],
    }
    return RecordsSummary(**{**made_with(config, "preprocess"), **usual, **fields})


def checkpoint_marker(config: Config | None = None, *, step: int = 1, **fields: Any) -> CheckpointMarker:
    """fields: of the training's state."""
    usual: dict[str, Any] = {
        "step": step,
        "epoch": 0,
        "best_step": None,
        "best_loss": None,
        "epochs_without_improvement": 0,
        "learning_rate_scale": 1.0,
        "loss_sum": 0.0,
        "correct_sum": 0.0,
        "samples": 0,
        "records_fingerprint": "",
        "threads": 1,
    }
    state = TrainState(**{**usual, **fields})
    return CheckpointMarker(**made_with(config, "train"), step=step, state=state, files=[], machines=[])


def trained_marker(config: Config | None = None, **fields: Any) -> TrainedMarker:
    usual: dict[str, Any] = {
        "step": 1,
        "epochs": 1,
        "best_step": 1,
        "best_loss": None,
        "stopped": "epochs=1 done",
        "records": "",
        "records_fingerprint": "",
        "weights_sha256": "",
        "machines": [],
    }
    return TrainedMarker(**{**made_with(config, "train"), **usual, **fields})


def detector_manifest(config: Config | None = None, **fields: Any) -> DetectorManifest:
    usual: dict[str, Any] = {
        "files": [],
        "step": 1,
        "slope": 1.0,
        "offset": 0.0,
        "prior": 0.5,
        "validation_prior": None,
        "threshold": 0.5,
        "threshold_from": "validation",
        "keras_version": "3",
        "tensorflow_version": "2",
        "config": {},
    }
    return DetectorManifest(**{**made_with(config, "export"), **usual, **fields})
