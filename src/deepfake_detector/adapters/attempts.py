"""A run's attempts as they are stored, one small object for each life of its processes."""

from __future__ import annotations

import logging
from typing import Literal

from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import CorruptError
from deepfake_detector.core.markers import Document, decode

log = logging.getLogger(__name__)
Work = Literal["preprocess", "train", "export"]
DAMAGED = "unknown: its record is damaged"


class AttemptWorker(Document):
    """address: of its TensorFlow process; pod, node: their names. Each is "" where there is none."""

    index: int
    rank: int
    address: str = ""
    pod: str = ""
    node: str = ""


class Attempt(Document):
    """started and ended: seconds since 1970 (UTC). reason: why it ended; None: it runs."""

    attempt: int
    stage: Work
    workers: list[AttemptWorker]
    started: float
    ended: float | None = None
    reason: str | None = None

    @property
    def on_one_machine(self) -> bool:
        """It ran in no pod."""
        return bool(self.workers) and not any(worker.pod for worker in self.workers)


def read_attempt(run: Storage, name: str) -> Attempt:
    """The attempt of this object. A damaged one is told of, and counts as one of training's that has ended.

    Raises NotFoundError, StorageError.
    """
    try:
        return decode(Attempt, run.read(name), f"{run.uri}/{name}")
    except CorruptError as error:
        log.warning("counted, though it can't be read: %s", error)
        return Attempt(attempt=layout.attempt_number(name), stage="train", workers=[], started=0.0, reason=DAMAGED)
