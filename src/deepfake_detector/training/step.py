"""One training step, the same on every worker, and the sums over all workers that everything else needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from deepfake_detector.core.config import Train


class Collectives:
    """Sums over the workers of a strategy; every worker calls in the same order with the same shapes."""

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy

        @tf.function(reduce_retracing=False)
        def total(value: Any) -> Any:
            return strategy.run(_sum_over_replicas, args=(value,))

        self._total = total

    def sum(self, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The sum of `value` (float32, float64, int32 or int64) over all workers, equal on all of them."""
        return local(self._strategy, self._total(tf.constant(value))).numpy()

    def from_chief(self, value: npt.NDArray[Any], chief: bool) -> npt.NDArray[Any]:
        """The chief's `value`, bit for bit: the others add zeros."""
        return self.sum(value if chief else np.zeros_like(value))

    def gather(self, text: str, rank: int, workers: int, width: int = 256) -> list[str]:
        """One short text of each worker, by rank; cut to `width` bytes of UTF-8."""
        table = np.zeros((workers, width), np.int32)
        data = text.encode()[:width]
        table[rank, : len(data)] = list(data)
        rows = self.sum(table).astype(np.uint8)
        return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]


def _sum_over_replicas(value: Any) -> Any:
    here = tf.identity(value)  # on the replica's device: a function's argument has none
    return tf.distribute.get_replica_context().all_reduce("SUM", here)


def local(strategy: Any, value: Any) -> Any:
    """What strategy.run returned on this worker, which has one replica."""
    return strategy.experimental_local_results(value)[0]


def make_optimizer(train: Train) -> keras.Optimizer:
    kind = keras.optimizers.Adam if train.optimizer == "adam" else keras.optimizers.SGD
    return kind(learning_rate=train.learning_rate)


Step = Callable[[Any, Any, float, int], tuple[float, float]]


def compile_step(strategy: Any, model: keras.Model, optimizer: keras.Optimizer, train: Train, rank: int) -> Step:
    """The function (images, labels, learning rate, step) -> (loss sum, correct) over the global batch.

    images: this worker's uint8 (b, T, S, S, 3); labels: float32 (b, 1). The loss is binary cross-entropy of the
    logit, and a logit of at least 0 says "fake".
    """
    variables = model.trainable_variables
    seed_states = list(_seed_states(model))

    def on_replica(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_sum(losses) / train.global_batch
        # apply() sums the gradients over the workers; a sum by hand as well would double them.
        optimizer.apply(tape.gradient(loss, variables), variables)
        correct = tf.cast(tf.equal(logits >= 0, labels >= 0.5), tf.float32)
        return _sum_over_replicas(tf.stack([tf.reduce_sum(losses), tf.reduce_sum(correct)]))

    @tf.function
    def compiled(images: Any, labels: Any, rate: Any, seeds: Any) -> Any:
        optimizer.learning_rate.assign(rate)
        for state, seed in zip(seed_states, tf.unstack(seeds, num=len(seed_states)), strict=True):
            state.assign(seed)
        return strategy.run(on_replica, args=(images, labels))

    def step(images: Any, labels: Any, rate: float, number: int) -> tuple[float, float]:
        seeds = dropout_seeds(train.seed, number, rank, len(seed_states))
        totals = compiled(images, labels, tf.constant(rate, tf.float32), tf.constant(seeds))
        loss_sum, correct = local(strategy, totals).numpy().tolist()
        return loss_sum, correct

    return step


def dropout_seeds(seed: int, step: int, rank: int, count: int) -> npt.NDArray[np.uint32]:
    """(count, 2) states for the model's seed generators: Keras' own are in no checkpoint, so each step sets them."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(2 * count, np.uint32)
    return state.astype(np.uint32).reshape(count, 2)


def _seed_states(model: keras.Model) -> Iterator[Any]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _seed_states(layer)
        elif getattr(layer, "seed_generator", None) is not None:
            yield layer.seed_generator.state
