from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from deepfake_detector.adapters.scoring import MIN_STEEPNESS, area_under_roc, equal_error_rate, fit_platt, score
from deepfake_detector.core.calibration import Calibration


def noisy(n: int, seed: int, fakes: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random(n) < fakes).astype(int)
    return random.normal(labels * 2.0 - 1.0, 1.5), labels


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], 0.0),
        ([0, 0, 1, 1], [0.8, 0.9, 0.1, 0.2], 1.0),
        ([0, 1], [0.5, 0.5], 0.5),
        ([0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5], 0.5),
        ([0, 0, 1, 1], [0.1, 0.6, 0.6, 0.9], 0.25),  # (0, .5) and (.5, 1) are equally near
        ([0, 0, 1, 1], [0.1, 0.7, 0.6, 0.9], 0.5),
        ([0, 0, 0, 0, 1], [0.1, 0.2, 0.3, 0.6, 0.5], 0.25),
    ],
    ids=["perfect", "inverted", "two_equal", "constant", "tie_across_classes", "one_swap", "few_fakes"],
)
def test_equal_error_rate(labels: list[int], scores: list[float], expected: float) -> None:
    assert equal_error_rate(labels, scores) == pytest.approx(expected)


@given(st.integers(0, 1000))
@settings(max_examples=25)
def test_equal_error_rate_is_the_oracles_where_one_point_is_nearest(seed: int) -> None:
    scores, labels = noisy(60, seed)
    fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    gap = np.abs(1 - tpr - fpr)
    nearest = np.flatnonzero(gap <= gap.min() + 1e-12)
    if len(nearest) == 1:
        assert equal_error_rate(labels, scores) == fpr[np.argmin(gap)]
    assert fpr[nearest].min() <= equal_error_rate(labels, scores) <= fpr[nearest].max()


def test_platt_equals_an_unpenalised_regression_on_the_smoothed_targets() -> None:
    logits, labels = noisy(400, 1, fakes=0.8)
    slope, offset, warning = fit_platt(logits, labels, 0.5)
    n = np.bincount(labels)
    rows, y, weights = [], [], []
    for logit, label in zip(logits, labels, strict=True):
        target = (n[1] + 1) / (n[1] + 2) if label else 1 / (n[0] + 2)
        for value, share in ((1, target), (0, 1 - target)):
            rows.append([logit])
            y.append(value)
            weights.append(share / n[label])
    oracle = LogisticRegression(C=math.inf, tol=1e-12, max_iter=10_000).fit(rows, y, np.array(weights) * 200)
    assert warning == ""
    assert slope == pytest.approx(oracle.coef_[0, 0], rel=1e-4)
    assert offset == pytest.approx(oracle.intercept_[0], rel=1e-3)


@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
@settings(max_examples=20, deadline=None)
def test_platt_probabilities_average_to_the_prior(seed: int, prior: float) -> None:
    """The likelihood's derivative by the offset is zero: weighted means of probability and target agree."""
    logits, labels = noisy(200, seed, fakes=0.7)
    slope, offset, _ = fit_platt(logits, labels, prior)
    fitted = Calibration(
        slope=slope, offset=offset, prior=prior, validation_prior=0.7, threshold=prior, threshold_from=""
    ).apply(logits)
    mean = prior * fitted[labels == 1].mean() + (1 - prior) * fitted[labels == 0].mean()
    fakes, reals = int(labels.sum()), int((1 - labels).sum())
    assert mean == pytest.approx(prior * (fakes + 1) / (fakes + 2) + (1 - prior) / (reals + 2), abs=1e-6)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3], ids=["small", "usual", "large"])
def test_platt_survives_separable_logits(scale: float) -> None:
    logits = np.array([-2.0, -1.0, 1.0, 2.0]) * scale
    slope, offset, warning = fit_platt(logits, [0, 0, 1, 1], 0.5)
    assert warning == ""
    assert 0 < slope * scale < 10
    assert offset == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("logits", [[2.0, 1.0, -1.0, -2.0], [0.3, 0.3, 0.3, 0.3]], ids=["inverted", "constant"])
def test_platt_never_turns_the_order_around(logits: list[float]) -> None:
    slope, offset, warning = fit_platt(logits, [0, 0, 1, 1], 0.5)
    assert slope * (np.std(logits) if np.ptp(logits) else 1) == pytest.approx(MIN_STEEPNESS)
    assert abs(offset) < 0.01  # the prior of one half
    assert "do not rank fakes higher" in warning


def scored(labels: list[int], probabilities: list[float], decided: list[bool] | None = None, **more: object) -> dict:
    settings = {"threshold": 0.5, "assumed_prior": 0.5, "natural_prior": 0.75, **more}
    return score(labels, probabilities, decided=decided or [True] * len(labels), **settings)  # type: ignore[arg-type]


def test_metrics_agree_with_scikit_learn() -> None:
    logits, labels = noisy(300, 7)
    p = 1 / (1 + np.exp(-logits))
    found = scored(labels.tolist(), p.tolist())
    clipped = p.clip(0.01, 0.99)
    assert found["reasons"] == {}
    assert found["auc"] == metrics.roc_auc_score(labels, logits)
    assert found["average_precision"] == metrics.average_precision_score(labels, p)
    assert found["log_loss_natural"] == metrics.log_loss(labels, p)
    assert found["log_loss_natural_clipped"] == metrics.log_loss(labels, clipped)
    assert found["log_loss_balanced"] == pytest.approx(
        (
            metrics.log_loss(labels[labels == 1], p[labels == 1], labels=[0, 1])
            + metrics.log_loss(labels[labels == 0], p[labels == 0], labels=[0, 1])
        )
        / 2
    )
    assert found["accuracy"] == metrics.accuracy_score(labels, p >= 0.5)
    assert found["balanced_accuracy"] == metrics.balanced_accuracy_score(labels, p >= 0.5)
    assert found["brier"] == pytest.approx(float(np.mean((p - labels) ** 2)))


def test_one_sure_error_is_bounded_by_clipping_alone() -> None:
    found = scored([0, 1], [1e-15, 1e-15])
    assert found["log_loss_natural"] == pytest.approx(34.54 / 2, abs=0.01)
    assert found["log_loss_natural_clipped"] == pytest.approx((-math.log(0.01) - math.log(0.99)) / 2)


def test_the_constant_predictor_reaches_the_published_log_loss_at_dfdcs_prior() -> None:
    found = scored([1] * 839 + [0] * 161, [0.5] * 1000, natural_prior=0.839)
    assert found["log_loss_natural"] == pytest.approx(0.693, abs=1e-3)
    assert found["log_loss_natural_shifted"] == pytest.approx(0.441, abs=1e-3)
    assert found["auc"] == 0.5
    assert found["equal_error_rate"] == 0.5


def test_an_undecided_video_is_an_error_at_any_threshold() -> None:
    for threshold in (0.4, 0.6):
        found = scored([1, 0, 1, 0], [0.9, 0.1, 0.5, 0.5], [True, True, False, False], threshold=threshold)
        assert found["accuracy"] == 0.5
        assert found["balanced_accuracy"] == 0.5
    assert found["auc"] == pytest.approx(metrics.roc_auc_score([1, 0, 1, 0], [0.9, 0.1, 0.5, 0.5]))


@pytest.mark.parametrize("label", [0, 1], ids=["reals", "fakes"])
def test_one_class_gives_null_with_the_reason(label: int) -> None:
    found = scored([label] * 3, [0.2, 0.3, 0.9])
    for name in ("auc", "average_precision", "equal_error_rate", "log_loss_balanced", "balanced_accuracy"):
        assert found[name] is None
        assert f"found {3 - 3 * label} real and {3 * label} fake" in found["reasons"][name]
    assert found["log_loss_natural"] is not None
    assert found["accuracy"] == pytest.approx(2 / 3 if label == 0 else 1 / 3)


def test_no_video_gives_null_everywhere() -> None:
    found = scored([], [])
    assert found["videos"] == 0
    assert set(found["reasons"]) == set(found) - {"videos", "real", "fake", "reasons"}
    assert all(found[name] is None for name in found["reasons"])


def test_an_unknown_prior_leaves_only_the_shifted_loss_out() -> None:
    assert set(scored([0, 1], [0.2, 0.8], natural_prior=None)["reasons"]) == {
        "log_loss_natural_shifted",
        "log_loss_natural_shifted_clipped",
    }


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [([0, 1], [0.0, 1.0], 1.0), ([1, 1], [0.0, 1.0], None), ([], [], None)],
    ids=["both", "one_class", "empty"],
)
def test_area_under_roc(labels: list[int], scores: list[float], expected: float | None) -> None:
    value, reason = area_under_roc(labels, scores)
    assert value == expected
    assert (reason == "") == (value is not None)
