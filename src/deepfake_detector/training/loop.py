"""Training as prose: input, model, resume, then epochs of steps with checkpoints in between."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import keras
import numpy as np

from deepfake_detector.adapters.storage import open_object
from deepfake_detector.core import layout, schedule
from deepfake_detector.core.config import Config, stage_settings
from deepfake_detector.core.errors import ConfigError, CorruptError, NotFoundError, WaitError
from deepfake_detector.core.markers import INEXACT, TrainState
from deepfake_detector.core.order import Order
from deepfake_detector.training import checkpoints
from deepfake_detector.training.chief import Chief
from deepfake_detector.training.clock import EpochClock, epoch_metrics
from deepfake_detector.training.dataset import Ahead, training_batches
from deepfake_detector.training.model import BACKBONE, build, load_backbone_weights
from deepfake_detector.training.normalization import SynchronizedBatchNormalization
from deepfake_detector.training.step import Collectives, Step, compile_step, make_optimizer
from deepfake_detector.training.task import Splits, Task
from deepfake_detector.training.validation import Validation, make_validation

FIRST = "first step of this attempt done"
log = logging.getLogger(__name__)


class Alarm(Protocol):
    """What ends a process that hangs: for too long after `start`, or between two signs of `progress`, until `stop`."""

    def start(self) -> None: ...

    def progress(self) -> None: ...

    def stop(self) -> None: ...


def train(task: Task, splits: Splits, strategy: Any, watchdog: Alarm) -> None:
    """Train to the end and commit the result. watchdog: runs from when all workers are here.

    Raises ConfigError when a loss is not finite, when the workers disagree about threads or the checkpoint to
    resume from, or when a checkpoint was made with other settings; WaitError when they have read different records.
    """
    config, cluster = task.config, task.cluster
    collectives = Collectives(strategy)
    machines = _agree(task, collectives, watchdog)
    order = Order(splits.train.labels, config)
    model, optimizer = _model(config, strategy)
    task.timeline.mark("model")
    state, writer = _begin(task, collectives, machines, model, optimizer)

    step = compile_step(strategy, model, optimizer, config.train, cluster.rank)
    validate = make_validation(strategy, collectives, model, splits.validation, config, cluster)
    start = state.step
    distributed = strategy.distribute_datasets_from_function(
        lambda _: training_batches(splits.train, order, config, cluster.rank, cluster.workers, start)
    )
    batches = Ahead(lambda: iter(distributed))
    steps = _Steps(config, order.steps_per_epoch, step, batches, watchdog, writer, start)
    task.timeline.mark("built")

    while (stopped := schedule.stop_reason(state, config.train)) is None:
        state = _epoch(steps, validate, state)
    batches.close()
    if writer:
        writer.finish(state, stopped)
    collectives.sum(np.zeros(1, np.int32))  # nobody leaves before the marker is there
    watchdog.stop()


def _agree(task: Task, collectives: Collectives, watchdog: Alarm) -> list[str]:
    """The workers' machines, by rank, once all are here with equal threads and records."""
    _require_equal_threads(task, collectives)
    watchdog.start()
    _require_equal_records(task, collectives)
    machines = collectives.gather(task.machine, task.cluster.rank, task.cluster.workers)
    task.timeline.mark("agreed")
    return machines


def _begin(
    task: Task, collectives: Collectives, machines: list[str], model: keras.Model, optimizer: Any
) -> tuple[TrainState, Chief | None]:
    """The state to go on from, and the chief's writer; on every worker the weights are that state's."""
    settings = stage_settings(task.config, "train")
    state = _resume(task, settings, collectives, machines, model, optimizer)
    if state is None:
        state = schedule.initial_state(task.records.fingerprint, task.threads)
        _load_backbone(task, collectives, model)
    writer = Chief(task, settings, machines, model, optimizer, state) if task.cluster.chief else None
    task.timeline.mark("resumed")
    return state, writer


def _epoch(steps: _Steps, validate: Validation, state: TrainState) -> TrainState:
    """The rest of the epoch, its validation and its end."""
    config, writer = steps.config, steps.writer
    clock = EpochClock(state.seconds)
    state = steps.to_the_end_of_the_epoch(state, clock)

    def after_batch() -> None:
        steps.watchdog.progress()
        if writer:
            writer.checkpoint_if_due(state, clock)

    after_batch()  # a run that was killed in validation has no step left before it
    scores = validate(after_batch)
    if scores:
        _require_finite(scores.loss, state.step, config)
    ended = schedule.after_epoch(state, scores.loss if scores else None, config.train)
    if writer:
        writer.end_epoch(epoch_metrics(state, scores, clock, steps.total, config), ended)
    return ended


@dataclass(frozen=True)
class _Steps:
    """Steps of training, and what is to be done after each. start: how many an earlier attempt has done."""

    config: Config
    per_epoch: int
    step: Step
    batches: Ahead
    watchdog: Alarm
    writer: Chief | None
    start: int

    @property
    def total(self) -> int:
        return self.config.train.epochs * self.per_epoch

    def to_the_end_of_the_epoch(self, state: TrainState, clock: EpochClock) -> TrainState:
        config, end = self.config.train, (state.epoch + 1) * self.per_epoch
        while state.step < end:
            rate = schedule.learning_rate(state.step, self.total, config, state.learning_rate_scale)
            images, labels = clock.waiting(partial(next, self.batches))
            loss_sum, correct = clock.working(partial(self.step, images, labels, rate, state.step))
            _require_finite(loss_sum, state.step, self.config)
            state = schedule.after_step(state, loss_sum, correct, config.global_batch)
            self.watchdog.progress()
            if state.step == self.start + 1:
                log.info("%s: step %d", FIRST, state.step)
            if self.writer:
                speed = clock.steps * config.global_batch / clock.busy
                self.writer.progress(state, loss_sum / config.global_batch, self.total, speed)
                if state.step < end:
                    self.writer.checkpoint_if_due(state, clock)
        return state


def _model(config: Config, strategy: Any) -> tuple[keras.Model, Any]:
    """With its optimizer, both built."""
    keras.utils.set_random_seed(config.train.seed)
    with strategy.scope():
        model = build(config, SynchronizedBatchNormalization)
        optimizer = make_optimizer(config.train)
        optimizer.build(model.trainable_variables)
    return model, optimizer


def _resume(
    task: Task, settings: dict[str, Any], collectives: Collectives, machines: list[str], model: Any, optimizer: Any
) -> TrainState | None:
    """The state of the newest checkpoint, restored on every worker, or None for a fresh start.

    Storage may show the workers different checkpoints: the chief's choice holds.
    """
    cluster = task.cluster
    marker = checkpoints.newest(task.run, task.scratch, settings) if cluster.chief else None
    chosen = int(collectives.from_chief(np.array([marker.step if marker else -1], np.int64), cluster.chief)[0])
    if chosen < 0:
        return None
    try:
        marker = marker or checkpoints.read(task.run, chosen)
        staged = checkpoints.fetch(task.run, marker, task.scratch)
    except (CorruptError, NotFoundError) as error:  # the chief has just read it
        raise WaitError(
            f"worker {cluster.rank}: the chief's checkpoint, another attempt looks again: {error}"
        ) from error
    state = marker.state
    if marker.machines != machines:
        log.warning("machines %s: the checkpoint was made on %s: %s", machines, marker.machines, INEXACT)
        state = state.model_copy(update={"exact": False})
    checkpoints.restore(staged, model, optimizer)
    restored = collectives.sum(np.array([int(optimizer.iterations.numpy())], np.int64))[0]
    if restored != chosen * cluster.workers:
        raise ConfigError(
            f"{task.run.uri}/{layout.checkpoint_marker(chosen)}: the workers' restored steps sum to {restored}: "
            f"expected {cluster.workers} x {chosen}"
        )
    log.info("resumed at step %d", chosen)
    return state


def _load_backbone(task: Task, collectives: Collectives, model: keras.Model) -> None:
    """Replace the backbone's random weights by model.weights: the chief fetches, all get its bits."""
    settings = task.config.model
    if settings.weights == "none":
        return
    if task.cluster.chief:
        storage, name = open_object(settings.weights)
        path = task.scratch / "weights" / name
        storage.download(name, path)
        load_backbone_weights(model, task.config, path, settings.weights_sha256)
    for variable in model.get_layer(BACKBONE).weights:
        variable.assign(collectives.from_chief(variable.numpy(), task.cluster.chief))


def _require_equal_threads(task: Task, collectives: Collectives) -> None:
    """The bits depend on the number of intra-op threads, so a run has one number."""
    chief = int(collectives.from_chief(np.array([task.threads], np.int32), task.cluster.chief)[0])
    wrong = int(collectives.sum(np.array([chief != task.threads], np.int32))[0])
    if wrong:
        raise ConfigError(
            f"threads={task.threads} on worker {task.cluster.rank}: expected the chief's {chief} on all workers, "
            f"{wrong} differ (set train.threads, or give all workers the same CPU limit)"
        )


def _require_equal_records(task: Task, collectives: Collectives) -> None:
    """A retry of lost videos that finishes while workers start would give some of them more records than others."""
    cluster = task.cluster
    found = collectives.gather(task.records.fingerprint, cluster.rank, cluster.workers)
    if len(set(found)) > 1:
        raise WaitError(
            f"{task.records_run.uri}: records changed while the workers started, worker {cluster.rank} has "
            f"{found[cluster.rank][:12]}: expected {found[0][:12]}, as worker 0 (another attempt reads them anew)"
        )


def _require_finite(loss: float, step: int, config: Config) -> None:
    if not math.isfinite(loss):
        raise ConfigError(
            f"loss={loss} at step {step}: expected a finite number "
            f"(train.learning_rate={config.train.learning_rate:g} may be too high)"
        )
