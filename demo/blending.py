"""Self-blended images: a face blended with a changed copy of itself, so that only the blending is fake.

Reimplemented from the description in Shiohara and Yamasaki, "Detecting Deepfakes with Self-Blended Images",
CVPR 2022: the copy's colour, sharpness, size and place are changed, and it is blended back through an
elastically deformed soft mask of the face. Here one draw holds for a whole clip, and flickers a little.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """How the copy differs from the face. All magnitudes grow with the strength and are zero with it."""

    offset: np.ndarray  # (3,) added to RGB, in levels of 255
    saturation: float  # share added to the distance from grey
    contrast: float  # share added to the distance from the mean
    sharpness: float  # > 0: unsharp masking's amount; < 0: sigma of a Gaussian blur in pixels, negated
    scale: np.ndarray  # (2,) share added to width and height
    shift: np.ndarray  # (2,) pixels
    flicker_levels: float  # standard deviation, per frame, of the brightness
    flicker_pixels: float  # and of the place


def draw_jitter(rng: np.random.Generator, strength: float) -> Jitter:
    """A clip's jitter; `strength` 0 makes the copy equal to the face, exactly. Uses the same draws at any strength."""

    def either_sign(low: float, high: float, size: int) -> np.ndarray:
        return strength * rng.choice((-1.0, 1.0), size) * rng.uniform(low, high, size)

    offset = either_sign(6, 16, 3)
    saturation, contrast = either_sign(0.1, 0.3, 1)[0], either_sign(0.05, 0.2, 1)[0]
    sharpen, amount = rng.random() < 0.5, rng.uniform(1.2, 1.8)
    return Jitter(
        offset=offset,
        saturation=saturation,
        contrast=contrast,
        sharpness=strength * (amount if sharpen else -amount),
        scale=either_sign(0.02, 0.06, 2),
        shift=either_sign(1, 3, 2),
        flicker_levels=strength * 2,
        flicker_pixels=strength * 0.4,
    )


def changed_copy(face: np.ndarray, jitter: Jitter) -> np.ndarray:
    """The blend's source: `face`, RGB float32 (H, W, 3), with the jitter's colour and sharpness."""
    grey = face.mean(axis=2, keepdims=True)
    copy = grey + (face - grey) * np.float32(1 + jitter.saturation)
    mean = face.mean(axis=(0, 1), keepdims=True)
    copy = mean + (copy - mean) * np.float32(1 + jitter.contrast) + jitter.offset.astype(np.float32)
    if jitter.sharpness > 0:
        copy += np.float32(jitter.sharpness) * (copy - cv2.GaussianBlur(copy, (0, 0), 1.5))
    elif jitter.sharpness < 0:
        copy = cv2.GaussianBlur(copy, (0, 0), -jitter.sharpness)
    return copy


def placed(copy: np.ndarray, jitter: Jitter, rng: np.random.Generator) -> np.ndarray:
    """One frame of the source: scaled about its centre and shifted, with this frame's flicker."""
    height, width = copy.shape[:2]
    level, dx, dy = rng.standard_normal(3) * (jitter.flicker_levels, jitter.flicker_pixels, jitter.flicker_pixels)
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    factor = 1 + jitter.scale
    move = centre - factor * centre + jitter.shift + (dx, dy)
    matrix = np.array([[factor[0], 0, move[0]], [0, factor[1], move[1]]])
    return cv2.warpAffine(copy, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101) + np.float32(level)


def soft_mask(hull: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """An elastically deformed, blurred mask of the face's hull times the blend's opacity: float32 (size, size, 1)."""
    centre = hull.mean(axis=0)
    points = centre + (hull - centre) * rng.uniform(0.85, 1.0, 2)
    mask = np.zeros((size, size), np.float32)
    cv2.fillConvexPoly(mask, cv2.convexHull(points.astype(np.float32)).astype(np.int32), 1.0)
    field = cv2.GaussianBlur(rng.uniform(-1, 1, (size, size, 2)).astype(np.float32), (0, 0), 7)
    field *= 4 / np.abs(field).max()
    y, x = np.mgrid[:size, :size].astype(np.float32)
    mask = cv2.remap(mask, x + field[..., 0], y + field[..., 1], cv2.INTER_LINEAR)
    mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(1.0, 2.5))
    return (mask * rng.choice(np.array([0.75, 1.0, 1.0], np.float32)))[..., None]


def blend(target: np.ndarray, source: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`target` where the mask is 0, `source` where it is 1; equal images give exactly `target`."""
    return target + mask * (source - target)
