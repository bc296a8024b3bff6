"""Batch normalisation over the global batch: as few passes over memory as a lone kernel's, one all-reduce each way."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
from keras import layers

VECTOR = 64  # numbers that the depthwise kernel adds at once at its best: with 192 it takes 1.5 times as long
SUMMED = 256  # times the number of images: how many values one float32 gathers at most


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

    As in Keras, variance is E[x^2] - E[x]^2, of which E[x^2] is exact to what `_sum_of_products` says.
    """
    sums = _sum(tf.stack([_sum_of(x), _sum_of_products(x, x)]))
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    count = tf.cast(tf.size(x) // x.shape[-1] * replicas, x.dtype)
    mean, mean_of_squares = tf.unstack(sums / count)
    return mean, tf.maximum(mean_of_squares - tf.square(mean), 0), count


def _sum_of(x: Any) -> Any:
    """(batch, height, width, channels) -> (channels,); 384 x 64 x 64 x 16 on one core: 12 ms, by reduce_sum 20.

    As a product with ones. 64 pixels side by side are summed by themselves first: 6e-7 of a sum are lost then, and
    4e-5 without.
    """
    channels, pixels = x.shape[-1], math.gcd(x.shape[1] * x.shape[2], 64)
    rows = tf.reshape(x, (-1, pixels * channels))
    sums = tf.matmul(tf.ones((1, tf.shape(rows)[0]), x.dtype), rows)
    return tf.reduce_sum(tf.reshape(sums, (pixels, channels)), 0)


def _sum_of_products(x: Any, y: Any) -> Any:
    """Two (batch, height, width, channels) -> sums of x * y (channels,), in one pass and with nothing in between.

    They are the gradient of a depthwise convolution's 1 x 1 filter. 384 x 64 x 64 x 16 on one core: 13 ms, where
    reduce_sum takes 42, and FusedBatchNormGradV3, which sums the same, 33. The kernel adds one value after the other to
    a float32, and so loses 9e-4 of that many squares; 2e-5 (reduce_sum: 1e-4) is lost with several sums, that get about
    SUMMED values an image: one for each channel of VECTOR / channels pixels side by side, in each slice of the batch.
    """
    channels, area = x.shape[-1], x.shape[1] * x.shape[2]
    abreast = math.gcd(area, max(1, VECTOR // channels))
    slices = math.ceil(area / abreast / SUMMED)
    batch, sums = tf.shape(x)[0], []
    for number in range(slices):
        part = slice(batch * number // slices, batch * (number + 1) // slices)
        some, others = (tf.reshape(each[part], (-1, 1, area // abreast, abreast * channels)) for each in (x, y))
        sums.append(
            tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=some,
                filter_sizes=[1, 1, abreast * channels, 1],
                out_backprop=others,
                strides=[1, 1, 1, 1],
                padding="VALID",
            )
        )
    return tf.reduce_sum(tf.reshape(tf.add_n(sums), (abreast, channels)), 0)


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
