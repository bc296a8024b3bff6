"""From logits to a verdict: mean within a track, Platt's calibration, maximum over a video's tracks, threshold.

A track's logit is the mean of its windows' logits. Its probability is sigmoid(slope * logit + offset), the form
of Platt, "Probabilistic outputs for support vector machines" (1999); training on balanced batches shifts the
prior, which the offset takes back. A video is as fake as its most suspicious face, since in a video with two
faces only one may be manipulated. The same functions judge in the evaluation and in prediction.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNDECIDED = 0.5  # probability of a video in which no face was found

Floats = NDArray[np.float64]
Track = tuple[str, int]  # key of the video, number of the track


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What turns a logit into a verdict; `notes` say what could not be computed, and why.

    slope, offset: probability = sigmoid(slope * logit + offset); prior: share of fakes that it assumes;
    validation_prior: share of fakes among the validation videos, None without any; threshold: the verdict is
    fake at probability >= threshold; threshold_from: where it comes from, for people.
    """

    slope: float
    offset: float
    prior: float
    validation_prior: float | None
    threshold: float
    threshold_from: str
    notes: tuple[str, ...] = ()

    def apply(self, logits: ArrayLike) -> Floats:
        """Calibrated probabilities, float64, of logits of any shape."""
        return sigmoid(self.slope * np.asarray(logits, np.float64) + self.offset)


def sigmoid(values: ArrayLike) -> Floats:
    """1 / (1 + exp(-x)) in float64, without overflow for any x."""
    x = np.asarray(values, np.float64)
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, small) / (1.0 + small))


def shift_prior(probabilities: ArrayLike, assumed: float, actual: float) -> Floats:
    """Probabilities that assume the share `assumed` of fakes, as they would be at the share `actual`.

    Bayes' rule on the odds: Saerens, Latinne and Decaestecker, "Adjusting the outputs of a classifier to new a
    priori probabilities" (2002), equation 4. Both shares must lie inside (0, 1).
    """
    p = np.asarray(probabilities, np.float64)
    fake = p * (actual / assumed)
    real = (1.0 - p) * ((1.0 - actual) / (1.0 - assumed))
    return np.asarray(fake / (fake + real))


def mean_by_track(tracks: Sequence[Track], logits: Sequence[float]) -> dict[Track, float]:
    """Mean logit of each track over its windows, tracks in sorted order.

    The sum is exact (math.fsum), so that the order in which windows were read changes no bit.
    """
    windows: dict[Track, list[float]] = defaultdict(list)
    for track, logit in zip(tracks, logits, strict=True):
        windows[track].append(float(logit))
    return {track: math.fsum(windows[track]) / len(windows[track]) for track in sorted(windows)}


def max_by_video(tracks: Mapping[Track, float]) -> dict[str, float]:
    """Largest value over the tracks of each video."""
    videos: dict[str, float] = {}
    for (video, _), value in tracks.items():
        videos[video] = max(value, videos.get(video, -math.inf))
    return videos


def best_threshold(probabilities: ArrayLike, labels: ArrayLike, prior: float) -> float:
    """The threshold with the largest balanced accuracy; the verdict is fake at probability >= threshold.

    probabilities, labels (1 is fake): length n, both classes present. Thresholds lie halfway between two
    neighbouring probabilities (or a probability and the end of [0, 1]), so that rounding decides no verdict. Of
    equally good ones the nearest to `prior` is taken: there the threshold of calibrated probabilities would lie
    with endless data. Raises ValueError when a class is missing.
    """
    p = np.asarray(probabilities, np.float64)
    fake = np.asarray(labels) == 1
    if fake.all() or not fake.any():
        raise ValueError(f"labels {sorted(set(np.asarray(labels).tolist()))}: expected both 0 and 1")
    edges = np.concatenate(([0.0], np.unique(p), [1.0]))
    candidates = (edges[:-1] + edges[1:]) / 2
    recall_fake = 1.0 - np.searchsorted(np.sort(p[fake]), candidates, side="left") / fake.sum()
    recall_real = np.searchsorted(np.sort(p[~fake]), candidates, side="left") / (~fake).sum()
    balanced = recall_fake + recall_real
    best = candidates[balanced >= balanced.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - prior))])
