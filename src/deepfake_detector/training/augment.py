"""Augmentation of one clip. Parameters are drawn once per clip: a jitter between frames would teach itself.

Every draw is keyed by (seed, step, position in the global batch), so that neither a resume nor the number of
workers changes it.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

BRIGHTNESS = 0.1  # of the full range, added
CONTRAST = 0.2  # relative, about mid-grey
SATURATION = 0.2  # relative, about the pixel's luma
SHIFT = 0.04  # of the side
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def clip_seed(seed: int, step: Any, position: Any) -> Any:
    """Seed (2,) of one clip's draws; step and position: int64 scalars."""
    root = tf.constant([seed % 2**31, seed // 2**31 % 2**31], dtype=tf.int32)
    fold = tf.random.experimental.stateless_fold_in
    return fold(fold(root, step, alg="philox"), position, alg="philox")


def augment(clip: Any, seed: Any) -> Any:
    """uint8 (T, S, S, 3) -> the same, flipped, shifted and with other brightness, contrast and saturation."""
    draw = tf.random.stateless_uniform((6,), seed, alg="philox")  # [0, 1)
    signed = 2 * draw - 1
    clip = tf.cond(draw[0] < 0.5, lambda: tf.reverse(clip, axis=[2]), lambda: clip)
    clip = _shift(clip, signed[1], signed[2])
    return _colour(clip, BRIGHTNESS * signed[3], 1 + CONTRAST * signed[4], 1 + SATURATION * signed[5])


def _shift(clip: Any, down: Any, right: Any) -> Any:
    """Move by up to SHIFT of the side; mirrored pixels fill the border."""
    size = clip.shape[1]
    most = round(SHIFT * size)
    if most == 0:
        return clip
    padded = tf.pad(clip, [[0, 0], [most, most], [most, most], [0, 0]], mode="SYMMETRIC")
    top, left = (most + tf.cast(tf.round(most * amount), tf.int32) for amount in (down, right))
    return tf.ensure_shape(padded[:, top : top + size, left : left + size], clip.shape)


def _colour(clip: Any, brightness: Any, contrast: Any, saturation: Any) -> Any:
    """All three as one affine map of RGB: contrast * (saturation * rgb + (1 - saturation) * luma - 1/2) + 1/2 + b."""
    to_luma = tf.tile(tf.constant(LUMA, tf.float32)[:, None], (1, 3))  # rgb @ to_luma = luma in each channel
    matrix = contrast * (saturation * tf.eye(3) + (1 - saturation) * to_luma)
    offset = 255 * (brightness + 0.5 * (1 - contrast))
    pixels = tf.reshape(tf.cast(clip, tf.float32), (-1, 3)) @ matrix + offset
    return tf.reshape(tf.saturate_cast(tf.round(pixels), tf.uint8), tf.shape(clip))
