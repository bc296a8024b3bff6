"""What a worker trains with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core.config import Config
from deepfake_detector.core.timeline import Timeline
from deepfake_detector.core.topology import Cluster
from deepfake_detector.training.dataset import Records, Split


@dataclass(frozen=True)
class Task:
    """What is known before TensorFlow is imported. machine: CPU model and code that count."""

    run: Storage
    records_run: Storage
    records: Records
    config: Config
    cluster: Cluster
    scratch: Path
    threads: int
    code_version: str
    machine: str
    timeline: Timeline


@dataclass(frozen=True)
class Splits:
    """The staged records."""

    train: Split
    validation: Split
