"""What a run tells about itself: metrics.jsonl, TensorBoard events, progress. Written by the chief alone."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from deepfake_detector.adapters.epochs import read_epochs
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.markers import EpochMetrics
from deepfake_detector.core.timeline import FIRST_STEP, Timeline
from deepfake_detector.training.uploads import Uploads

LOCAL_PROGRESS_SECONDS = 2.0
REMOTE_PROGRESS_SECONDS = 15.0  # buckets take about one write a second per name, and each costs


class RunLog:
    """The logs of one attempt, which continues after `finished` epochs.

    Later epochs of an earlier attempt are cut from metrics.jsonl, and TensorBoard discards its later events: it
    takes a SessionLog START as a restart that invalidates everything from its step on.
    """

    def __init__(self, run: Storage, scratch: Path, finished: int, timeline: Timeline, uploads: Uploads) -> None:
        self._run = run
        self._uploads = uploads
        self._timeline = timeline
        recorded = read_epochs(run)
        self.epochs = [epoch for epoch in recorded if epoch.epoch <= finished]
        if self.epochs != recorded:
            self._write_metrics()
        self._folder = scratch / "tensorboard" / str(time.time_ns())
        self._events = EventFileWriter(str(self._folder))
        start = SessionLog(status=SessionLog.START)
        after = self.epochs[-1].step + 1 if self.epochs else 1
        self._events.add_event(Event(wall_time=time.time(), step=after, session_log=start))
        self._interval = REMOTE_PROGRESS_SECONDS if "://" in run.uri else LOCAL_PROGRESS_SECONDS
        self._last_progress = -self._interval

    def epoch(self, metrics: EpochMetrics) -> None:
        """Add an epoch's line and scalars, and store both."""
        self.epochs.append(metrics)
        self._write_metrics()
        values = metrics.model_dump(exclude={"epoch", "step"})
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items() if value is not None]
        self._events.add_event(Event(wall_time=time.time(), step=metrics.step, summary=Summary(value=scalars)))
        self._store_events()

    def progress(self, *, epoch: int, epochs: int, step: int, steps: int, loss: float, rate: float) -> None:
        """Tell how far training is, at most every few seconds. loss: of the last step; rate: sequences/s."""
        self._timeline.mark(FIRST_STEP)
        now = time.monotonic()
        if now - self._last_progress < self._interval:
            return
        self._last_progress = now
        if not self._uploads.idle:
            return  # a look at it may wait
        values = {"epoch": epoch, "epochs": epochs, "step": step, "steps": steps, "loss": loss, "rate": rate}
        document = {**values, "timeline": self._timeline.moments}
        self._store(layout.progress("train", 0), (json.dumps(document) + "\n").encode())

    def close(self) -> None:
        self._store_events()
        self._events.close()

    def _write_metrics(self) -> None:
        lines = "".join(epoch.model_dump_json() + "\n" for epoch in self.epochs)
        self._store(layout.METRICS, lines.encode())

    def _store_events(self) -> None:
        self._events.flush()
        for path in self._folder.iterdir():
            self._store(layout.TENSORBOARD + path.name, path.read_bytes())  # as it is now: it goes on to grow

    def _store(self, name: str, data: bytes) -> None:
        self._uploads.put(partial(self._run.write, name, data))
