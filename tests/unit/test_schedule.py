from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detector.core.config import Train
from deepfake_detector.core.markers import TrainState
from deepfake_detector.core.schedule import (
    PLATEAU_FLOOR,
    after_epoch,
    after_step,
    initial_state,
    learning_rate,
    stop_reason,
)

START = initial_state("records", threads=2)


def run_epochs(losses: list[float | None], train: Train, steps: int = 10) -> TrainState:
    state = START
    for loss in losses:
        for _ in range(steps):
            state = after_step(state, 1.0, 2.0, 4)
        state = after_epoch(state, loss, train)
    return state


@pytest.mark.parametrize(
    ("train", "step", "scale", "expected"),
    [
        pytest.param(Train(schedule="constant", learning_rate=0.1), 70, 1.0, 0.1, id="constant"),
        pytest.param(Train(schedule="constant", learning_rate=0.1), 70, 0.5, 0.1, id="constant: scale is not its own"),
        pytest.param(Train(schedule="cosine", learning_rate=0.1), 0, 1.0, 0.1, id="cosine starts at the full rate"),
        pytest.param(Train(schedule="cosine", learning_rate=0.1), 50, 1.0, 0.05, id="cosine: half in the middle"),
        pytest.param(Train(schedule="cosine", learning_rate=0.1), 100, 1.0, 0.0, id="cosine ends at 0"),
        pytest.param(Train(schedule="plateau", learning_rate=0.1), 5, 0.25, 0.025, id="plateau: scaled"),
        pytest.param(Train(schedule="cosine", learning_rate=0.1, warmup_steps=10), 0, 1.0, 0.01, id="first warm-up"),
        pytest.param(Train(schedule="cosine", learning_rate=0.1, warmup_steps=10), 9, 1.0, 0.1, id="last warm-up"),
        pytest.param(Train(schedule="cosine", learning_rate=0.1, warmup_steps=10), 55, 1.0, 0.05, id="after warm-up"),
        pytest.param(Train(schedule="cosine", learning_rate=0.1, warmup_steps=200), 100, 1.0, 0.0505, id="all warm-up"),
    ],
)
def test_learning_rate(train: Train, step: int, scale: float, expected: float) -> None:
    assert learning_rate(step, 100, train, scale) == pytest.approx(expected)


@given(
    step=st.integers(0, 999), warmup=st.integers(0, 2000), schedule=st.sampled_from(["constant", "cosine", "plateau"])
)
def test_a_learning_rate_is_positive_and_at_most_the_set_one(step: int, warmup: int, schedule: str) -> None:
    train = Train.model_validate({"schedule": schedule, "warmup_steps": warmup, "learning_rate": 0.1})
    assert 0 < learning_rate(step, 1000, train, 1.0) <= 0.1


@pytest.mark.parametrize(
    ("losses", "best_step", "best_loss", "stale"),
    [
        pytest.param([0.7, 0.6, 0.5], 30, 0.5, 0, id="always better"),
        pytest.param([0.7, 0.5, 0.6, 0.55], 20, 0.5, 2, id="two epochs without a better one"),
        pytest.param([0.7, 0.7], 10, 0.7, 1, id="equal is not better"),
        pytest.param([None, None], 20, None, 0, id="no validation: the newest is the best"),
    ],
)
def test_the_best_epoch_is_kept(
    losses: list[float | None], best_step: int, best_loss: float | None, stale: int
) -> None:
    state = run_epochs(losses, Train())
    assert (state.best_step, state.best_loss, state.epochs_without_improvement) == (best_step, best_loss, stale)
    assert (state.epoch, state.step) == (len(losses), 10 * len(losses))
    assert (state.loss_sum, state.correct_sum, state.samples) == (0.0, 0.0, 0)


def test_a_plateau_lowers_the_rate_every_second_epoch_down_to_a_floor() -> None:
    train = Train(schedule="plateau")
    scales = [run_epochs([0.5] + [0.6] * count, train).learning_rate_scale for count in range(20)]
    assert scales[:6] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert scales[-1] == PLATEAU_FLOOR


def test_other_schedules_leave_the_scale() -> None:
    assert run_epochs([0.5, 0.6, 0.6, 0.6], Train(schedule="cosine")).learning_rate_scale == 1


@pytest.mark.parametrize(
    ("losses", "train", "expected"),
    [
        pytest.param([0.7], Train(epochs=2), None, id="goes on"),
        pytest.param([0.7, 0.6], Train(epochs=2), "epochs=2 done", id="all epochs"),
        pytest.param([0.5, 0.6, 0.6], Train(patience=2), "no better validation loss for 2 epochs", id="patience"),
        pytest.param([0.5, 0.6, 0.6], Train(patience=0), None, id="patience 0 never stops early"),
        pytest.param([None] * 3, Train(patience=2), None, id="no validation, no early stop"),
    ],
)
def test_stop_reason(losses: list[float | None], train: Train, expected: str | None) -> None:
    assert stop_reason(run_epochs(losses, train), train) == expected


def test_sums_of_the_running_epoch_are_kept_between_steps() -> None:
    state = after_step(after_step(START, 1.5, 3, 4), 0.5, 1, 4)
    assert (state.step, state.loss_sum, state.correct_sum, state.samples) == (2, 2.0, 4.0, 8)
