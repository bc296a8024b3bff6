"""The run's attempts: logs/attempts/NNNNN.json, one for each life of the training processes or of the export."""

from __future__ import annotations

import time
from typing import Literal

from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import WaitError
from deepfake_detector.core.markers import Document, decode

Work = Literal["train", "export"]


class AttemptWorker(Document):
    index: int
    rank: int
    address: str


class Attempt(Document):
    """started and ended: seconds since 1970 (UTC). reason: why it ended; None: it runs."""

    attempt: int
    stage: Work
    workers: list[AttemptWorker]
    started: float
    ended: float | None = None
    reason: str | None = None


class History:
    """All attempts of a run, counted over the lives of its supervisors.

    Only the supervisor that keeps the rendezvous writes here. An attempt's object is created before its children
    start, so of two keepers (one cut off, one restarted) only one can open an attempt.
    """

    def __init__(self, run: Storage) -> None:
        """Read what was; an attempt without an end is given one, as its keeper is gone."""
        self._run = run
        self._attempts = [decode(Attempt, run.read(entry.name), entry.name) for entry in run.list(layout.ATTEMPTS)]
        if self._attempts and self._attempts[-1].reason is None:
            self.close("the supervisor that kept the rendezvous is gone")

    @property
    def last(self) -> int:
        return self._attempts[-1].attempt if self._attempts else 0

    @property
    def reason(self) -> str:
        """Why the latest attempt ended."""
        return (self._attempts[-1].reason or "") if self._attempts else ""

    def used(self, stage: Work) -> int:
        return sum(attempt.stage == stage for attempt in self._attempts)

    def open(self, number: int, stage: Work, workers: list[AttemptWorker]) -> None:
        """Create the attempt's object; raises WaitError when another keeper has opened this number."""
        attempt = Attempt(attempt=number, stage=stage, workers=workers, started=time.time())
        name = layout.attempt(number)
        if not self._run.create(name, attempt.encode()):
            raise WaitError(f"{self._run.uri}/{name}: exists, expected no other supervisor to keep the rendezvous")
        self._attempts.append(attempt)

    def close(self, reason: str) -> None:
        """Record why the latest attempt ended."""
        if not self._attempts:
            return
        ended = self._attempts[-1].model_copy(update={"ended": time.time(), "reason": reason})
        self._attempts[-1] = ended
        self._run.write(layout.attempt(ended.attempt), ended.encode())
