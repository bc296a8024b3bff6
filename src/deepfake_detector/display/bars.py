"""What a person sees meanwhile: one bar a stage, and a line for each epoch and each lost attempt.

Everything is read from the run, as `deepfake-detector status` would from anywhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from typing import Any

from tqdm import tqdm

from deepfake_detector.adapters.epochs import read_epochs
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import NotFoundError
from deepfake_detector.core.markers import PlanSummary, ShardReport, decode
from deepfake_detector.display.words import describe_epoch
from deepfake_detector.supervisor.attempts import Attempt
from deepfake_detector.supervisor.policy import COMPLETE

LOCAL_SECONDS, REMOTE_SECONDS = 0.5, 5.0  # between two looks at the run


class _Display:
    def __init__(self, run: Storage, title: str, unit: str) -> None:
        self.run = run
        self.bar = tqdm(desc=title, unit=unit, dynamic_ncols=True, disable=None)  # None: no bar without a terminal
        self._pause = REMOTE_SECONDS if run.uri.startswith("gs://") else LOCAL_SECONDS
        self._next = 0.0

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def due(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._pause
        return True

    def say(self, line: str) -> None:
        self.bar.write(line)

    def progress(self, stage: str, index: int) -> dict[str, Any]:
        """What a job last told; empty before it told anything."""
        try:
            values = json.loads(self.run.read(layout.progress(stage, index)))
        except (NotFoundError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def set(self, done: int, total: int | None) -> None:
        self.bar.total = total
        self.bar.n = done
        self.bar.refresh()


class PreprocessDisplay(_Display):
    """Videos done, over all shards."""

    def __init__(self, run: Storage, shards: int) -> None:
        super().__init__(run, "preprocess", "video")
        self._shards = shards
        self._finished: dict[int, int] = {}  # shard -> its videos, from its report
        self._total: int | None = None

    def refresh(self, running: Collection[int]) -> None:
        """running: the shards that are being worked on; all of the others are looked for by their reports."""
        if self.due():
            self._look(running)

    def last_look(self) -> None:
        """What came since the last refresh, which a stage may outrun."""
        self._look(())

    def _look(self, running: Collection[int]) -> None:
        if self._total is None and self.run.exists(layout.PLAN):
            plan = decode(PlanSummary, self.run.read(layout.PLAN), f"{self.run.uri}/{layout.PLAN}")
            self._total = sum(sum(labels.values()) for labels in plan.counts.values())
            for line in plan.found:
                self.say(f"  {line}")
            for warning in plan.warnings:
                self.say(f"  warning: {warning}")
        for entry in self.run.list("records/"):
            if layout.is_shard_report(entry.name):
                self._count(entry.name)
        told = sum(int(self.progress("preprocess", i).get("done", 0)) for i in running if i not in self._finished)
        self.set(sum(self._finished.values()) + told, self._total)

    def _count(self, name: str) -> None:
        shard = int(name.removeprefix("records/")[:5])
        if shard not in self._finished:
            report = decode(ShardReport, self.run.read(name), f"{self.run.uri}/{name}")
            self._finished[shard] = len(report.videos)


class TrainDisplay(_Display):
    """Steps done; epochs, attempts and the export as lines."""

    def __init__(self, run: Storage) -> None:
        super().__init__(run, "train", "step")
        epochs = read_epochs(run)
        self._epoch = epochs[-1].epoch if epochs else 0
        self._told = {attempt.attempt for attempt in self._attempts(set())}

    def refresh(self) -> None:
        if not self.due():
            return
        self.last_words()
        told = self.progress("train", 0)
        if told.get("steps"):
            self.bar.set_postfix_str(f"epoch {told.get('epoch')}/{told.get('epochs')}, loss {told.get('loss'):.4f}")
            self.set(int(told["step"]), int(told["steps"]))

    def last_words(self) -> None:
        """All that has not been said yet."""
        for attempt in self._attempts(self._told):
            self._tell(attempt)
        epochs = read_epochs(self.run)
        self._epoch = min(self._epoch, epochs[-1].epoch if epochs else 0)  # a resume cuts later epochs back
        for epoch in epochs:
            if epoch.epoch > self._epoch:
                self._epoch = epoch.epoch
                self.say(describe_epoch(epoch))

    def _tell(self, attempt: Attempt) -> None:
        if attempt.reason is None:
            return
        self._told.add(attempt.attempt)
        if attempt.reason == COMPLETE:
            self.say("  training is complete; calibrating, evaluating and exporting")
        elif attempt.stage == "train" or "exported" not in attempt.reason:
            self.say(f"  attempt {attempt.attempt} ended: {attempt.reason}")

    def _attempts(self, known: Collection[int]) -> list[Attempt]:
        names = [entry.name for entry in self.run.list(layout.ATTEMPTS)]
        return [
            decode(Attempt, self.run.read(name), f"{self.run.uri}/{name}")
            for name in names
            if int(name.removeprefix(layout.ATTEMPTS)[:5]) not in known
        ]
