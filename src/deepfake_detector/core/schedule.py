"""Learning rate and early stopping: pure functions of the settings and the training state."""

from __future__ import annotations

import math

from deepfake_detector.core.config import Train
from deepfake_detector.core.markers import TrainState

PLATEAU_EPOCHS = 2  # epochs without a better validation loss before the rate is scaled down
PLATEAU_FACTOR = 0.5
PLATEAU_FLOOR = 1 / 64


def initial_state(records_fingerprint: str, threads: int) -> TrainState:
    """The state before the first step. threads: intra-op threads of every worker, frozen from here on."""
    return TrainState(
        step=0,
        epoch=0,
        best_step=None,
        best_loss=None,
        epochs_without_improvement=0,
        learning_rate_scale=1.0,
        loss_sum=0.0,
        correct_sum=0.0,
        samples=0,
        records_fingerprint=records_fingerprint,
        threads=threads,
    )


def learning_rate(step: int, total_steps: int, train: Train, scale: float) -> float:
    """Rate of the step that follows `step` finished ones, of `total_steps` in the run.

    Linear warm-up over `warmup_steps`, then constant, half a cosine down to 0 (Loshchilov and Hutter, SGDR, 2017),
    or constant times `scale`, which `after_epoch` lowers on a plateau.
    """
    rate = train.learning_rate
    if step < train.warmup_steps:
        return rate * (step + 1) / train.warmup_steps
    if train.schedule == "cosine":
        done = (step - train.warmup_steps) / max(1, total_steps - train.warmup_steps)
        return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return rate * scale if train.schedule == "plateau" else rate


def after_step(state: TrainState, loss_sum: float, correct: float, samples: int) -> TrainState:
    """The state after one more step, with the sums over its global batch added to the running epoch's."""
    return state.model_copy(
        update={
            "step": state.step + 1,
            "loss_sum": state.loss_sum + loss_sum,
            "correct_sum": state.correct_sum + correct,
            "samples": state.samples + samples,
        }
    )


def after_epoch(state: TrainState, validation_loss: float | None, train: Train) -> TrainState:
    """The state after an epoch's end. Without a validation loss the newest epoch counts as the best."""
    better = validation_loss is None or state.best_loss is None or validation_loss < state.best_loss
    stale = 0 if better else state.epochs_without_improvement + 1
    scale = state.learning_rate_scale
    if train.schedule == "plateau" and stale and stale % PLATEAU_EPOCHS == 0:
        scale = max(PLATEAU_FLOOR, scale * PLATEAU_FACTOR)
    return state.model_copy(
        update={
            "epoch": state.epoch + 1,
            "best_step": state.step if better else state.best_step,
            "best_loss": validation_loss if better else state.best_loss,
            "epochs_without_improvement": stale,
            "learning_rate_scale": scale,
            "loss_sum": 0.0,
            "correct_sum": 0.0,
            "samples": 0,
            "seconds": 0.0,
        }
    )


def stop_reason(state: TrainState, train: Train) -> str | None:
    """Why training is over, or None: it goes on. Looked at between epochs only."""
    if train.patience and state.epochs_without_improvement >= train.patience:
        return f"no better validation loss for {train.patience} epochs"
    if state.epoch >= train.epochs:
        return f"epochs={train.epochs} done"
    return None
