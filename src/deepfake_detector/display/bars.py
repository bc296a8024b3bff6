"""What a person sees meanwhile: one bar a stage, and a line for each epoch and each lost attempt.

Everything is read from the run, as `deepfake-detector status` would from anywhere.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from tqdm import tqdm

from deepfake_detector.adapters.attempts import Attempt, read_attempt
from deepfake_detector.adapters.epochs import read_epochs
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import NotFoundError
from deepfake_detector.core.markers import PlanSummary, ShardReport, decode
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.display.words import describe_epoch
from deepfake_detector.supervisor.policy import COMPLETE

LOCAL_SECONDS, REMOTE_SECONDS = 0.5, 5.0  # between two looks at the run
READERS = 8  # small objects read at a time: one takes about 50 ms from a bucket


class Display:
    """A bar that shows the time alone, and lines above it. A context manager."""

    def __init__(self, run: Storage, title: str, unit: str = "", bar_format: str | None = None) -> None:
        self.run = run
        # None: no bar without a terminal
        self.bar = tqdm(desc=title, unit=unit, dynamic_ncols=True, disable=None, bar_format=bar_format)
        self.pause = REMOTE_SECONDS if run.uri.startswith("gs://") else LOCAL_SECONDS
        self._next = 0.0
        self._notes: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def refresh(self, running: Collection[int] = ()) -> None:
        """Look at the run, unless the last look was a moment ago."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self.pause
            self.look(running)

    def look(self, running: Collection[int]) -> None:
        """Show what the run tells now. running: the indexes that are at work."""

    def say(self, line: str) -> None:
        self.bar.write(line)

    def note(self, **notes: str) -> None:
        """Short texts behind the bar, each in the place of the one of its name before."""
        self._notes |= notes
        self.bar.set_postfix_str(", ".join(filter(None, self._notes.values())), refresh=False)

    def progress(self, stage: str, index: int) -> dict[str, Any]:
        """What a job last told; empty before it told anything."""
        try:
            values = json.loads(self.run.read(layout.progress(stage, index)))
        except (NotFoundError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def finish(self) -> None:
        """All is done, whatever was told last: progress is told every few seconds only."""
        if self.bar.total:
            self.set(int(self.bar.total), int(self.bar.total))

    def set(self, done: int, total: int | None) -> None:
        if not self.bar.n:
            self.bar.initial = done  # what was done before has no part in the rate
        self.bar.total = total
        self.bar.n = done
        self.bar.refresh()


class ExportDisplay(Display):
    """The time alone: an export takes less than a minute."""

    def __init__(self, run: Storage) -> None:
        super().__init__(run, "export", bar_format="{desc}: {elapsed}{postfix}")


class PreprocessDisplay(Display):
    """Videos done and lost, over all shards."""

    def __init__(self, run: Storage, shards: int) -> None:
        super().__init__(run, "preprocess", "video")
        self._shards = shards
        self._finished: dict[int, Counter[str]] = {}  # shard -> its videos by outcome, from its report
        self._total: int | None = None

    def last_look(self) -> None:
        """What came since the last refresh, which a stage may outrun."""
        self.look(())

    def look(self, running: Collection[int]) -> None:
        """running: the shards that are being worked on; all of the others are looked for by their reports."""
        if self._total is None and self.run.exists(layout.PLAN):
            plan = decode(PlanSummary, self.run.read(layout.PLAN), f"{self.run.uri}/{layout.PLAN}")
            self._total = sum(sum(labels.values()) for labels in plan.counts.values())
            for line in plan.found:
                self.say(f"  {line}")
            for warning in plan.warnings:
                self.say(f"  warning: {warning}")
        with ThreadPoolExecutor(READERS) as pool:
            new = [entry.name for entry in self.run.list("records/") if self._is_new(entry.name)]
            self._finished |= dict(pool.map(self._report, new))
            at_work = [index for index in running if index not in self._finished]
            told = [*pool.map(lambda index: self.progress("preprocess", index), at_work)]
        losses = sum(self._finished.values(), _losses(told))
        self.note(lost=_in_words(losses))
        done = sum(counts.total() for counts in self._finished.values())
        self.set(done + sum(int(each.get("done", 0)) for each in told), self._total)

    def _is_new(self, name: str) -> bool:
        return layout.is_shard_report(name) and _shard_of(name) not in self._finished

    def _report(self, name: str) -> tuple[int, Counter[str]]:
        report = decode(ShardReport, self.run.read(name), f"{self.run.uri}/{name}")
        return _shard_of(name), Counter(str(video.outcome) for video in report.videos)


def _shard_of(name: str) -> int:
    return int(name.removeprefix("records/")[:5])


def _losses(told: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Outcomes that shards at work have told so far."""
    counts: Counter[str] = Counter()
    for each in told:
        counts.update(each.get("outcomes") or {})
    return counts


def _in_words(outcomes: Counter[str]) -> str:
    lost = [f"{name} {count}" for name, count in outcomes.most_common() if name != Outcome.OK and count]
    return f"lost: {', '.join(lost)}" if lost else ""


class TrainDisplay(Display):
    """Steps done; epochs, attempts and the export as lines. timeline: moments of the first start, once it has told."""

    def __init__(self, run: Storage) -> None:
        super().__init__(run, "train", "step")
        self.timeline: dict[str, float] = {}
        epochs = read_epochs(run)
        self._epoch = epochs[-1].epoch if epochs else 0
        self._told = {attempt.attempt for attempt in self._attempts(set())}

    def look(self, running: Collection[int] = ()) -> None:
        self.last_words()
        told = self.progress("train", 0)
        if told.get("steps"):
            speed = f", {told['rate']:.1f} sequences/s" if told.get("rate") else ""
            self.note(epoch=f"epoch {told.get('epoch')}/{told.get('epochs')}, loss {told.get('loss'):.4f}{speed}")
            self.set(int(told["step"]), int(told["steps"]))
        self.timeline = self.timeline or dict(told.get("timeline") or {})

    def last_words(self) -> None:
        """All that has not been said yet."""
        attempts = self._attempts(self._told)  # before the epochs, so that none of a complete training is missed
        for attempt in attempts:
            if attempt.reason != COMPLETE:
                self._tell(attempt)
        epochs = read_epochs(self.run)
        self._epoch = min(self._epoch, epochs[-1].epoch if epochs else 0)  # a resume cuts later epochs back
        for epoch in epochs:
            if epoch.epoch > self._epoch:
                self._epoch = epoch.epoch
                self.say(describe_epoch(epoch))
        for attempt in attempts:
            if attempt.reason == COMPLETE:
                self._tell(attempt)

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
        return [read_attempt(self.run, name) for name in names if layout.attempt_number(name) not in known]
