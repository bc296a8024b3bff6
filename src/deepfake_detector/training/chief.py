"""The worker of rank 0 beside its training."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from deepfake_detector.core import layout
from deepfake_detector.core.cadence import steps_between
from deepfake_detector.core.config import fingerprint
from deepfake_detector.core.errors import ConfigError, CorruptError, NotFoundError, WaitError
from deepfake_detector.core.markers import EpochMetrics, TrainedMarker, TrainState
from deepfake_detector.training import charts, checkpoints
from deepfake_detector.training.clock import EpochClock
from deepfake_detector.training.logs import RunLog
from deepfake_detector.training.task import Task
from deepfake_detector.training.uploads import Uploads

log = logging.getLogger(__name__)


class Chief:
    """What worker 0 alone writes: checkpoints, logs, and at the end the marker."""

    def __init__(
        self, task: Task, settings: dict[str, Any], machines: list[str], model: Any, optimizer: Any, state: TrainState
    ) -> None:
        operations = task.config.operations
        self._task, self._settings, self._machines = task, settings, machines
        self._model, self._optimizer = model, optimizer
        self._uploads = Uploads()
        self._checkpoints = checkpoints.Checkpoints(
            task.run, task.scratch, settings, task.code_version, machines, operations.keep_checkpoints, state.step
        )
        self._log = RunLog(task.run, task.scratch, state.epoch, task.timeline, self._uploads)
        self._operations = operations
        self._saved_at = time.monotonic()
        self._saved_step = state.step
        self._save_seconds = 0.0  # of the last checkpoint's part for which training waited

    def progress(self, state: TrainState, loss: float, steps: int, rate: float) -> None:
        epochs = self._task.config.train.epochs
        self._log.progress(epoch=state.epoch + 1, epochs=epochs, step=state.step, steps=steps, loss=loss, rate=rate)

    def checkpoint_if_due(self, state: TrainState, clock: EpochClock) -> None:
        """Save when it is time to, by the measured step, unless storage is still busy with what was saved before."""
        if state.step == self._saved_step or not clock.steps:
            return
        every, most = self._operations.checkpoint_steps, self._operations.checkpoint_seconds
        by_steps = every and state.step % every == 0
        step_seconds = clock.busy / clock.steps
        due = steps_between(step_seconds, self._save_seconds, most) * step_seconds
        if by_steps or (time.monotonic() - self._saved_at >= due and self._uploads.idle):
            self._save(state.model_copy(update={"seconds": clock.seconds()}))

    def end_epoch(self, metrics: EpochMetrics, state: TrainState) -> None:
        """Metrics first: a crash before the checkpoint cuts the line again, one after it would lose the line."""
        self._log.epoch(metrics)
        self._save(state)
        log.info("epoch %d: %s", metrics.epoch, metrics.model_dump_json(exclude={"epoch"}))

    def finish(self, state: TrainState, stopped: str) -> None:
        run, best = self._task.run, state.best_step
        if best is None:
            raise ConfigError(f"step {state.step}: no finished epoch, expected at least one (train.epochs)")
        self._log.close()
        self._uploads.close()
        run.write(layout.CHARTS, charts.draw(self._log.epochs))
        try:
            checkpoints.restore_weights(run, best, self._model, self._task.scratch)
        except (CorruptError, NotFoundError) as error:
            checkpoints.discard_from(run, best)
            raise WaitError(f"the best checkpoint is lost, and computed again by another attempt: {error}") from error
        marker = TrainedMarker(
            settings=self._settings,
            fingerprint=fingerprint(self._settings),
            code_version=self._task.code_version,
            step=state.step,
            epochs=state.epoch,
            best_step=best,
            best_loss=state.best_loss,
            stopped=stopped,
            records=self._task.records_run.uri,
            records_fingerprint=self._task.records.fingerprint,
            weights_sha256=checkpoints.weights_sha256(self._model),
            machines=self._machines,
            exact=state.exact,
        )
        run.write(layout.TRAINED, marker.encode())
        log.info("trained: %s, best step %d", stopped, best)

    def _save(self, state: TrainState) -> None:
        """Write the state to local disk, now, and have it stored and committed by and by."""
        begin = time.monotonic()
        written = self._checkpoints.write(self._model, self._optimizer, state)
        self._save_seconds = time.monotonic() - begin  # a wait for storage makes no checkpoint more expensive
        self._uploads.put(partial(self._checkpoints.commit, written))
        self._saved_at = time.monotonic()
        self._saved_step = state.step
