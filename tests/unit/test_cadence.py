from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detector.core.cadence import LEAST_SECONDS, MOST_COST, steps_between


@pytest.mark.parametrize(
    ("step", "save", "most", "steps"),
    [
        pytest.param(0.1, 0.0, 30.0, 50, id="nothing is known of the cost yet"),
        pytest.param(0.1, 0.05, 30.0, 189, id="sqrt(2 x 0.05 x 3600) = 18.97 s"),
        pytest.param(0.1, 0.2, 30.0, 300, id="at most the setting"),
        pytest.param(0.1, 3.0, 30.0, 1000, id="but no more than 3 % of the time"),
        pytest.param(45.0, 0.1, 30.0, 1, id="steps longer than the interval"),
        pytest.param(0.1, 0.0, 2.0, 20, id="a setting below the least"),
    ],
)
def test_steps_between(step: float, save: float, most: float, steps: int) -> None:
    assert steps_between(step, save, most) == steps


@given(st.floats(1e-4, 100), st.floats(0, 100), st.floats(0.1, 3600))
def test_the_cost_is_bounded_and_so_is_the_loss(step: float, save: float, most: float) -> None:
    steps = steps_between(step, save, most)
    assert steps >= 1
    seconds = steps * step
    if steps > 1:
        assert seconds <= max(most, LEAST_SECONDS, save / MOST_COST)
        assert save <= MOST_COST * (seconds + step) * (1 + 1e-9)
