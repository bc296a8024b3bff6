"""Batch normalisation over the global batch: as few passes over memory as a lone kernel's, one all-reduce each way."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras import layers


class SynchronizedBatchNormalization(layers.BatchNormalization):
    """`BatchNormalization(synchronized=True)` for training, several times cheaper on a CPU.

    Keras 3.15 builds it from element-wise operations and reduces three tensors forward, one of them of ones as large
    as the input, and each of them backward again. Here every pass over the data is one kernel that runs at the speed
    of memory, and sum and sum of squares travel together in one all-reduce; the count is known, since every worker's
    slice of the batch has the same size. A lone worker has nothing to reduce: one kernel does the whole layer.
    Variables and their names are the built-in layer's, so a checkpoint fits either.
    Ioffe and Szegedy, "Batch Normalization", 2015, section 3.
    """

    def __init__(self, relu: bool = False, **settings: Any) -> None:
        """relu: the layer's output goes through max(., 0), in the kernel that normalises."""
        super().__init__(**settings)
        self.relu = relu

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "relu": self.relu}

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """(batch, height, width, channels) float32 -> the same, normalised over all but the last axis."""
        if not training or not self.trainable or inputs.shape.rank != 4:
            outputs = super().call(inputs, training=training, mask=mask)
            return tf.nn.relu(outputs) if self.relu else outputs
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        normalise = _in_one_kernel if _is_alone() and _has_fast_kernel(inputs) else _over_all_workers
        outputs, mean, variance = normalise(inputs, gamma, beta, self.epsilon, self.relu)
        self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1 - self.momentum))
        self.moving_variance.assign(self.moving_variance * self.momentum + variance * (1 - self.momentum))
        return outputs


def _is_alone() -> bool:
    return bool(tf.distribute.get_replica_context().num_replicas_in_sync == 1)


def _in_one_kernel(x: Any, gamma: Any, beta: Any, epsilon: float, relu: bool) -> tuple[Any, Any, Any]:
    """As `_over_all_workers`, where there is one."""
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    count = tf.cast(tf.size(x) // x.shape[-1], x.dtype)
    variance = variance * (count - 1) / count  # the kernel's is the unbiased one
    return tf.nn.relu(outputs) if relu else outputs, mean, variance


def _over_all_workers(x: Any, gamma: Any, beta: Any, epsilon: float, relu: bool) -> tuple[Any, Any, Any]:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, mean and variance over all workers' x; and these two.

    Figures below are of one CPU core with AVX-512; what is done here was measured on CPUs only.
    """

    @tf.custom_gradient
    def normalised(x: Any, gamma: Any, beta: Any) -> Any:
        mean, variance, count = _moments(x)
        outputs = _affine(x, gamma, beta, mean, variance, epsilon)
        if relu:  # in here: what custom_gradient puts around its outputs would keep TensorFlow from fusing the two
            outputs = tf.nn.relu(outputs)

        def gradient(upstream: Any, _mean: Any, _variance: Any) -> tuple[Any, Any, Any]:
            if relu:
                upstream = tf.raw_ops.ReluGrad(gradients=upstream, features=outputs)
            scale = tf.math.rsqrt(variance + epsilon)
            by_beta, products = _sum_of(upstream), _sum_of_products(upstream, x)
            by_gamma = (products - mean * by_beta) * scale
            # mean and variance depend on x as well: from gamma * scale * upstream goes, with sums over all workers,
            # gamma * scale * (sum(upstream) + x_hat * sum(upstream * x_hat)) / count, where x_hat = (x - mean) * scale.
            total_gamma, total_beta = tf.unstack(_sum(tf.stack([by_gamma, by_beta])) / count)
            factor = gamma * scale
            slope = factor * scale * total_gamma
            by_x = _difference(upstream, factor, x, slope, factor * total_beta - slope * mean)
            # The workers' gradients of gamma and beta are added up with all others, by the optimizer.
            return by_x, by_gamma, by_beta

        return (outputs, mean, variance), gradient

    return normalised(x, gamma, beta)


def _has_fast_kernel(x: Any) -> bool:
    """oneDNN's batch normalisation is vectorised for whole blocks of 16 channels.

    Two threads, AVX-512, forward: 64 x 32 x 32 x 48 takes 3 ms and 64 x 32 x 32 x 72 24 ms.
    """
    return x.shape[-1] % 16 == 0


def _moments(x: Any) -> tuple[Any, Any, Any]:
    """Mean and variance (channels,) over all workers, and over how many values of each channel.

    As in Keras, variance is E[x^2] - E[x]^2: in float32 some 1e-7 (mean / deviation)^2 of it is rounding.
    """
    sums = _sum(tf.stack([_sum_of(x), _sum_of_products(x, x)]))
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    count = tf.cast(tf.size(x) // x.shape[-1] * replicas, x.dtype)
    mean, mean_of_squares = tf.unstack(sums / count)
    return mean, tf.maximum(mean_of_squares - tf.square(mean), 0), count


def _sum_of(x: Any) -> Any:
    """(..., channels) -> (channels,); a product with ones takes half the time of reduce_sum."""
    rows = tf.reshape(x, (-1, x.shape[-1]))
    return tf.matmul(tf.ones((1, tf.shape(rows)[0]), x.dtype), rows)[0]


def _sum_of_products(x: Any, y: Any) -> Any:
    """Two (batch, height, width, channels) -> sums of x * y (channels,), in one pass and with nothing in between.

    They are the gradient of a depthwise convolution's 1 x 1 filter. 256 x 64 x 64 x 16 on one core: 14 ms, where
    reduce_sum takes 32, and FusedBatchNormGradV3, which sums the same, 27.
    """
    channels = x.shape[-1]
    sums = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
        input=x, filter_sizes=[1, 1, channels, 1], out_backprop=y, strides=[1, 1, 1, 1], padding="VALID"
    )
    return tf.reshape(sums, (channels,))


@tf.function(jit_compile=True, autograph=False)
def _difference(x: Any, factor: Any, y: Any, slope: Any, offset: Any) -> Any:
    """factor * x - (slope * y + offset), in one pass: 21 ms for 256 x 64 x 64 x 16, as TensorFlow operations 67."""
    return factor * x - (slope * y + offset)


def _affine(x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float) -> Any:
    if _has_fast_kernel(x):
        return tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=epsilon, is_training=False
        )[0]
    factor = gamma * tf.math.rsqrt(variance + epsilon)
    return x * factor + (beta - mean * factor)


def _sum(value: Any) -> Any:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)
