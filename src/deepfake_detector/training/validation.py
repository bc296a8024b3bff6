"""Exact scores of the whole validation split, the same numbers on every worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from deepfake_detector.core.config import Config
from deepfake_detector.core.order import padded_share
from deepfake_detector.core.topology import Cluster
from deepfake_detector.training.dataset import Split, evaluation_batches
from deepfake_detector.training.step import Collectives, local


@dataclass(frozen=True)
class Scores:
    """loss: mean binary cross-entropy of the natural logit; auc: None unless both labels are there."""

    loss: float
    accuracy: float
    auc: float | None


Validation = Callable[[Callable[[], None]], Scores | None]


def score_logits(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Scores:
    """Scores of logits (n,) against labels (n,) of 0 and 1, in float64; n is at least 1."""
    from deepfake_detector.adapters.scoring import area_under_roc  # scikit-learn, which no first step has to wait for

    z = logits.astype(np.float64)
    losses = np.logaddexp(0, z) - labels * z
    auc, _ = area_under_roc(labels.tolist(), z.tolist()) if np.isfinite(z).all() else (None, "")
    return Scores(float(losses.mean()), float(((z >= 0) == (labels == 1)).mean()), auc)


def make_validation(
    strategy: Any, collectives: Collectives, model: keras.Model, split: Split, config: Config, cluster: Cluster
) -> Validation:
    """The function that scores `split` with the model's present weights; None when the split is empty.

    It calls `after_batch` after each of its batches: validation may take long, and changes nothing in the model.

    Each worker runs equally many steps over its contiguous share, padded with the split's first record. Its logits
    then stand in a vector of zeros as long as the split, and the sum over the workers is exact to the bit.
    """
    batch = config.train.global_batch // config.train.workers
    share = padded_share(len(split), cluster.rank, cluster.workers, batch)
    real = np.array([index is not None for index in share], dtype=bool)
    indices = [index or 0 for index in share]

    @tf.function
    def predict(images: Any) -> Any:
        return strategy.run(lambda x: model(x, training=False), args=(images,))

    @cache
    def batches() -> Any:
        return evaluation_batches(split, indices, batch, config.sampling.frames, config.faces.size)

    def validate(after_batch: Callable[[], None]) -> Scores | None:
        if len(split) == 0:
            return None
        parts = []
        for images in batches():
            parts.append(local(strategy, predict(images)).numpy()[:, 0])
            after_batch()
        mine = np.concatenate(parts)
        logits = np.zeros(len(split), np.float32)
        logits[np.array(indices)[real]] = mine[real]
        return score_logits(collectives.sum(logits), split.labels)

    return validate
