"""Metrics and Platt's fit by scikit-learn. What can't be computed is None, with the reason beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from deepfake_detector.core.calibration import Floats, shift_prior

CLIP = (0.01, 0.99)  # one sure error costs 34.5 at p=1e-15 and 4.6 here
MIN_STEEPNESS = 1e-3  # least slope per standard deviation of the logits; below, their order would turn around
ONE_CLASS = "expected real and fake videos, found {real} real and {fake} fake"


def fit_platt(logits: ArrayLike, labels: ArrayLike, prior: float) -> tuple[float, float, str]:
    """Slope, offset and a warning ("" when all is well) of sigmoid(slope * logit + offset).

    logits, labels (1 is fake): length n, both classes present. Maximum likelihood without penalty, by
    scikit-learn's LogisticRegression. The classes are weighted to the shares 1 - prior and prior, and the targets
    are Platt's (1999): (n_fake + 1) / (n_fake + 2) and 1 / (n_real + 2) in place of 1 and 0, which keeps the
    slope finite when a threshold separates the classes. Below MIN_STEEPNESS per
    standard deviation a slope would turn the order around: it is then held there, where the likelihood's best
    offset is, to first order in the slope, the log odds of the mean target.
    """
    x = np.asarray(logits, np.float64)
    fake = np.asarray(labels) == 1
    n_fake, n_real = int(fake.sum()), int((~fake).sum())
    target = np.where(fake, (n_fake + 1) / (n_fake + 2), 1 / (n_real + 2))
    weight = np.where(fake, prior / n_fake, (1 - prior) / n_real) * x.size
    # A soft target is a sample seen as fake with weight t and as real with weight 1 - t. Standardised, the
    # solver's tolerance means the same for logits of any scale.
    constant = bool(x.std() < 1e-9)
    centre, scale = float(x.mean()), 1.0 if constant else float(x.std())
    least = MIN_STEEPNESS / scale
    slope = offset = 0.0
    if not constant:
        fit = LogisticRegression(C=math.inf, solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(
            np.tile((x - centre) / scale, 2)[:, None],
            np.repeat([1, 0], x.size),
            sample_weight=np.concatenate((weight * target, weight * (1 - target))),
        )
        slope = float(fit.coef_[0, 0]) / scale
        offset = float(fit.intercept_[0]) - slope * centre
    if slope >= least:
        return slope, offset, ""
    mean = float(np.average(target, weights=weight))
    offset = math.log(mean / (1 - mean)) - least * float(np.average(x, weights=weight))
    return least, offset, f"slope {slope:.3g} held at {least:.3g}: the validation logits do not rank fakes higher"


def equal_error_rate(labels: ArrayLike, scores: ArrayLike) -> float:
    """False positive rate where it comes nearest to the false negative rate; both classes present.

    Where several points of the ROC curve are equally near (scores that are all equal have (0, 0) and (1, 1)),
    their mean false positive rate: a constant score has 0.5, not 0.
    """
    fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    gap = np.abs((1 - tpr) - fpr)
    return float(fpr[gap <= gap.min() + 1e-12].mean())


def balanced_log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Log loss in which reals and fakes weigh one half each; both classes present."""
    y = np.asarray(labels)
    weight = np.where(y == 1, 0.5 / (y == 1).sum(), 0.5 / (y == 0).sum())
    return float(metrics.log_loss(y, probabilities, labels=[0, 1], sample_weight=weight))


def score(
    labels: Sequence[int],
    probabilities: Sequence[float],
    *,
    decided: Sequence[bool],
    threshold: float,
    assumed_prior: float,
    natural_prior: float | None,
) -> dict[str, Any]:
    """All metrics of one set of videos, and under "reasons" why a metric is None.

    labels: 1 is fake; probabilities: calibrated to assumed_prior. A video that is not `decided` is no verdict, so
    it counts as an error in both accuracies. log_loss_natural* take the videos as they come, log_loss_balanced*
    weigh the classes equally, and log_loss_natural_shifted* first moves the decided probabilities to
    `natural_prior` (of the validation split). Each is given as it is and clipped to [0.01, 0.99].
    """
    y, p, known = np.asarray(labels, int), np.asarray(probabilities, np.float64), np.asarray(decided, bool)
    fake, real = int((y == 1).sum()), int((y == 0).sum())
    verdict = np.where(known, (p >= threshold).astype(int), 1 - y)
    both = "" if fake and real else ONE_CLASS.format(real=real, fake=fake)
    some = "" if y.size else "expected at least one video, found none"
    shiftable = natural_prior is not None and 0 < natural_prior < 1
    prior_reason = "" if shiftable else f"expected a validation prior inside (0, 1), found {natural_prior}"
    shifted = np.where(known, shift_prior(p, assumed_prior, natural_prior), p) if shiftable else p  # type: ignore[arg-type]

    def natural(q: Floats) -> float:
        return float(metrics.log_loss(y, q, labels=[0, 1]))

    wanted: dict[str, tuple[str, Callable[[], float]]] = {
        "auc": (both, lambda: float(metrics.roc_auc_score(y, p))),
        "average_precision": (both, lambda: float(metrics.average_precision_score(y, p))),
        "equal_error_rate": (both, lambda: equal_error_rate(y, p)),
        "log_loss_natural": (some, lambda: natural(p)),
        "log_loss_natural_clipped": (some, lambda: natural(p.clip(*CLIP))),
        "log_loss_natural_shifted": (some or prior_reason, lambda: natural(shifted)),
        "log_loss_natural_shifted_clipped": (some or prior_reason, lambda: natural(shifted.clip(*CLIP))),
        "log_loss_balanced": (both, lambda: balanced_log_loss(y, p)),
        "log_loss_balanced_clipped": (both, lambda: balanced_log_loss(y, p.clip(*CLIP))),
        "accuracy": (some, lambda: float(metrics.accuracy_score(y, verdict))),
        "balanced_accuracy": (both, lambda: float(metrics.balanced_accuracy_score(y, verdict))),
        "brier": (some, lambda: float(metrics.brier_score_loss(y, p, pos_label=1))),
    }
    values = {name: None if reason else compute() for name, (reason, compute) in wanted.items()}
    reasons = {name: reason for name, (reason, _) in wanted.items() if reason}
    return {"videos": int(y.size), "real": real, "fake": fake, **values, "reasons": reasons}


def area_under_roc(labels: Sequence[int], scores: Sequence[float]) -> tuple[float | None, str]:
    """AUC, or None and the reason."""
    fake = sum(label == 1 for label in labels)
    real = len(labels) - fake
    if not fake or not real:
        return None, ONE_CLASS.format(real=real, fake=fake).replace("videos", "sequences")
    return float(metrics.roc_auc_score(labels, scores)), ""


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """False and true positive rates of the ROC curve; both classes present."""
    fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    return fpr, tpr
