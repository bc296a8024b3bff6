"""Where the time of an epoch goes, and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from deepfake_detector.core import schedule
from deepfake_detector.core.config import Config
from deepfake_detector.core.markers import EpochMetrics, TrainState
from deepfake_detector.training.validation import Scores


class EpochClock:
    """Seconds of one epoch, over all attempts, and what this attempt's steps spent waiting for input."""

    def __init__(self, before: float) -> None:
        self._start = time.monotonic() - before
        self.wait = self.work = 0.0
        self.steps = 0

    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def busy(self) -> float:
        return self.wait + self.work

    def waiting(self, action: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = action()
        self.wait += time.perf_counter() - begin
        return result

    def working(self, action: Callable[[], tuple[float, float]]) -> tuple[float, float]:
        begin = time.perf_counter()
        result = action()
        self.work += time.perf_counter() - begin
        self.steps += 1
        return result


def epoch_metrics(
    state: TrainState, scores: Scores | None, clock: EpochClock, total_steps: int, config: Config
) -> EpochMetrics:
    return EpochMetrics(
        epoch=state.epoch + 1,
        step=state.step,
        seconds=clock.seconds(),
        learning_rate=schedule.learning_rate(state.step - 1, total_steps, config.train, state.learning_rate_scale),
        train_loss=state.loss_sum / state.samples,
        train_accuracy=state.correct_sum / state.samples,
        validation_loss=scores.loss if scores else None,
        validation_accuracy=scores.accuracy if scores else None,
        validation_auc=scores.auc if scores else None,
        sequences_per_second=clock.steps * config.train.global_batch / clock.busy if clock.steps else 0.0,
        input_wait_fraction=clock.wait / clock.busy if clock.steps else 0.0,
    )
