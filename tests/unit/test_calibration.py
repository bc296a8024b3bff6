from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detector.core.calibration import (
    Calibration,
    best_threshold,
    max_by_video,
    mean_by_track,
    shift_prior,
    sigmoid,
)

finite = st.floats(-1e6, 1e6)
inside = st.floats(0.01, 0.99)


def calibration(slope: float, offset: float) -> Calibration:
    return Calibration(
        slope=slope, offset=offset, prior=0.5, validation_prior=0.5, threshold=0.5, threshold_from="a test"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, 0.5), (1e4, 1.0), (-1e4, 0.0), (math.log(3), 0.75), (-math.log(3), 0.25)],
    ids=["centre", "no_overflow", "no_underflow", "three_to_one", "one_to_three"],
)
def test_sigmoid(value: float, expected: float) -> None:
    assert sigmoid(value) == pytest.approx(expected, abs=1e-15)


@given(st.floats(1e-3, 1e3), finite, st.lists(finite, min_size=2, max_size=20))
def test_calibration_keeps_the_order_of_logits(slope: float, offset: float, logits: list[float]) -> None:
    probabilities = calibration(slope, offset).apply(sorted(logits))
    assert (np.diff(probabilities) >= 0).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


@given(inside, inside, st.floats(1e-6, 1 - 1e-6))
def test_shifting_the_prior_there_and_back_changes_nothing(assumed: float, actual: float, p: float) -> None:
    there = shift_prior(p, assumed, actual)
    assert shift_prior(there, actual, assumed) == pytest.approx(p, abs=1e-9)
    assert (there > p) == (actual > assumed) or there == pytest.approx(p, abs=1e-9)


def test_a_shifted_prior_is_the_probability_of_no_evidence() -> None:
    assert shift_prior(0.5, 0.5, 0.839) == pytest.approx(0.839)


@given(st.permutations(list(enumerate([0.1, 0.2, 0.3, 1e16, -1e16, 0.7]))))
def test_mean_by_track_does_not_depend_on_the_order(windows: list[tuple[int, float]]) -> None:
    tracks = [("v", index % 2) for index, _ in windows]
    means = mean_by_track(tracks, [logit for _, logit in windows])
    assert means == {("v", 0): math.fsum([0.1, 0.3, -1e16]) / 3, ("v", 1): math.fsum([0.2, 1e16, 0.7]) / 3}
    assert list(means) == [("v", 0), ("v", 1)]


def test_max_by_video_takes_the_most_suspicious_face() -> None:
    assert max_by_video({("a", 0): -3.0, ("a", 1): 2.0, ("b", 4): -1.0}) == {"a": 2.0, "b": -1.0}


@pytest.mark.parametrize(
    ("probabilities", "labels", "expected"),
    [
        ([0.2, 0.8], [0, 1], 0.5),
        ([0.1, 0.2, 0.6, 0.9], [0, 0, 1, 1], 0.4),
        ([0.1, 0.3, 0.3, 0.9], [0, 0, 1, 1], 0.6),  # 0.2 and 0.6 are equally good: the nearer to the prior
        ([0.5, 0.5], [0, 1], 0.25),  # nothing separates them; 0.25 and 0.75 are as near: the first
        ([0.8, 0.2], [0, 1], 0.1),  # upside down: all fake or all real, never flipped
        ([0.4, 0.4, 0.6], [0, 0, 1], 0.5),
        ([0.0, 1.0], [0, 1], 0.5),
    ],
    ids=["midpoint", "gap", "equally_good", "constant", "inverted", "ties_in_a_class", "saturated"],
)
def test_best_threshold(probabilities: list[float], labels: list[int], expected: float) -> None:
    assert best_threshold(probabilities, labels, 0.5) == pytest.approx(expected)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=30))
def test_no_threshold_has_a_better_balanced_accuracy(samples: list[tuple[float, bool]]) -> None:
    p = np.array([value for value, _ in samples])
    fake = np.array([label for _, label in samples])
    if fake.all() or not fake.any():
        with pytest.raises(ValueError, match="expected both 0 and 1"):
            best_threshold(p, fake, 0.5)
        return

    def balanced(threshold: float) -> float:
        return float((p[fake] >= threshold).mean() + (p[~fake] < threshold).mean()) / 2

    found = best_threshold(p, fake, 0.5)
    assert 0 <= found <= 1
    # Neighbouring doubles have no midpoint of their own: there the threshold may fall on either of them.
    if np.diff(np.unique(p)).min(initial=1) > 1e-12:
        assert balanced(found) >= max(balanced(value) for value in [*p, 2.0]) - 1e-12
