"""One synthesised clip: a portrait that moves, under changing light, filmed by a noisy camera and compressed.

Everything about a clip is drawn from (seed, group). The real clip of a group and its fake share every draw but
the camera's noise, and take the same path: the real one is the fake at strength 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np

from demo import blending, portraits

SIZES = ((160, 160), (176, 160), (192, 160), (160, 192))  # width, height
RATES = (12, 15, 20, 25)  # frames per second
FRAMES = (16, 24)  # least and most

_SCENE, _BLEND, _NOISE = 0, 1, 2  # independent random streams of one group
_GRAIN_MARGIN = 32  # pixels by which the field of noise is larger than a frame


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a group's clips show and how they are filmed, but for the blending."""

    portrait: portraits.Portrait
    flip: bool
    width: int
    height: int
    fps: int
    frames: int
    quality: int  # x264's constant rate factor
    noise: float  # standard deviation in levels of 255
    zoom: float  # frame pixels per canvas pixel
    roll: float  # radians
    centre: np.ndarray  # (2,) where the face's centre lies, frame pixels from the middle
    shape: np.ndarray  # (5, 5, 2) lasting displacement of the portrait, canvas pixels
    mimic: np.ndarray  # (4, 4, 2) displacement that comes and goes, canvas pixels
    motion: np.ndarray  # (7, 2, 3) two sines of amplitude, hertz, phase for each of what moves
    gains: np.ndarray  # (3,) factor on RGB
    saturation: float
    gamma: float
    backdrop: np.ndarray  # (4, 4, 3) levels added away from the head
    light: np.ndarray  # (2,) gradient of brightness over the frame


# Amplitudes of `Scene.motion`: x and y (pixels), roll (radians), zoom, brightness, tilt of the light, mimic.
_AMPLITUDES = np.array([2.5, 2.0, 0.025, 0.02, 0.05, 0.06, 0.7])


def draw_scene(seed: int, group: int) -> Scene:
    rng = np.random.default_rng((seed, group, _SCENE))
    width, height = SIZES[rng.integers(len(SIZES))]
    sines = np.stack(
        [
            _AMPLITUDES[:, None] * rng.uniform(0.3, 1, (7, 2)),
            rng.uniform(0.2, 1.2, (7, 2)),
            rng.uniform(0, 2 * np.pi, (7, 2)),
        ],
        axis=2,
    )
    return Scene(
        portrait=portraits.PORTRAITS[rng.integers(len(portraits.PORTRAITS))],
        flip=bool(rng.random() < 0.5),
        width=width,
        height=height,
        fps=int(rng.choice(RATES)),
        frames=int(rng.integers(FRAMES[0], FRAMES[1] + 1)),
        quality=int(rng.integers(18, 25)),
        noise=rng.uniform(1, 3),
        zoom=rng.uniform(0.7, 0.9),
        roll=rng.uniform(-0.12, 0.12),
        centre=rng.uniform(-6, 6, 2),
        shape=rng.uniform(-4, 4, (5, 5, 2)).astype(np.float32),
        mimic=rng.uniform(-1.5, 1.5, (4, 4, 2)).astype(np.float32),
        motion=sines,
        gains=rng.uniform(0.9, 1.1, 3).astype(np.float32),
        saturation=rng.uniform(0.7, 1.2),
        gamma=rng.uniform(0.8, 1.25),
        backdrop=rng.uniform(-40, 40, (4, 4, 3)).astype(np.float32),
        light=rng.uniform(-0.15, 0.15, 2),
    )


@cache
def _portrait(portrait: portraits.Portrait) -> tuple[np.ndarray, np.ndarray]:
    return portraits.load(portrait)


def _smooth(coarse: np.ndarray, width: int, height: int) -> np.ndarray:
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _canvas(scene: Scene, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The portrait as this group has it, and the blend's mask bent the same way."""
    image, hull = _portrait(scene.portrait)
    size = portraits.CANVAS
    image = np.clip(image / 255, 0, 1) ** np.float32(scene.gamma) * 255 * scene.gains
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * np.float32(scene.saturation)
    low, high = hull.min(axis=0), hull.max(axis=0)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    middle, radii = (low + high) / 2, (high - low) / 2
    # Nought over the head and hair, one from twice the face's radius on: too wide to be taken for a blend's edge.
    away = np.hypot((x - middle[0]) / radii[0], (y - middle[1]) / radii[1])
    image = image + np.clip((away - 1.4) / 1.2, 0, 1)[..., None] * _smooth(scene.backdrop, size, size)
    bend = _smooth(scene.shape, size, size)
    maps = (x + bend[..., 0], y + bend[..., 1])
    image = cv2.remap(image.astype(np.float32), *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    mask = cv2.remap(mask, *maps, cv2.INTER_LINEAR)[..., None]
    return (image[:, ::-1].copy(), mask[:, ::-1].copy()) if scene.flip else (image, mask)


def _motion(scene: Scene, seconds: float) -> np.ndarray:
    amplitude, hertz, phase = np.moveaxis(scene.motion, 2, 0)
    return (amplitude * np.sin(2 * np.pi * hertz * seconds + phase)).sum(axis=1)


def render(seed: int, group: int, fake: bool, strength: float = 1.0) -> Iterator[np.ndarray]:
    """The frames of one clip, RGB uint8 (height, width, 3), before compression.

    strength: factor on every magnitude of the blending; a real clip is a fake of strength 0.
    """
    scene = draw_scene(seed, group)
    rng = np.random.default_rng((seed, group, _BLEND))
    mask = blending.soft_mask(_portrait(scene.portrait)[1], portraits.CANVAS, rng)
    jitter = blending.draw_jitter(rng, strength if fake else 0.0)
    canvas, mask = _canvas(scene, mask)
    rows, columns = np.nonzero(mask[..., 0] > 1e-3)
    face = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    copy = blending.changed_copy(canvas[face], jitter)
    camera = _Camera(scene, np.random.default_rng((seed, group, _NOISE, int(fake))))
    for index in range(scene.frames):
        blended = canvas.copy()
        blended[face] = blending.blend(canvas[face], blending.placed(copy, jitter, rng), mask[face])
        yield camera.film(blended, index / scene.fps)


class _Camera:
    """Films the canvas of one clip: place, light and noise of a frame. All arrays are float32, for speed."""

    def __init__(self, scene: Scene, noise: np.random.Generator) -> None:
        self._scene, self._noise = scene, noise
        width, height = scene.width, scene.height
        self._y, self._x = np.mgrid[:height, :width].astype(np.float32)
        self._across, self._down = self._x / width - 0.5, self._y / height - 0.5
        self._mimic = _smooth(scene.mimic, width, height)
        # Each frame's noise is another window of one larger field: a tenth of the cost of drawing it anew.
        grain = noise.standard_normal((height + _GRAIN_MARGIN, width + _GRAIN_MARGIN, 3), np.float32)
        self._grain = grain * np.float32(scene.noise)

    def film(self, canvas: np.ndarray, seconds: float) -> np.ndarray:
        scene = self._scene
        # Python floats: a NumPy float64 would turn whole arrays into float64.
        dx, dy, roll, zoom, brightness, tilt, mimic = _motion(scene, seconds).tolist()
        u = self._x - (scene.width / 2 + float(scene.centre[0]) + dx)
        v = self._y - (scene.height / 2 + float(scene.centre[1]) + dy)
        scale, angle, half = 1 / (scene.zoom * (1 + zoom)), scene.roll + roll, portraits.CANVAS / 2
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        map_x = half + cos * u + sin * v + mimic * self._mimic[..., 0]
        map_y = half - sin * u + cos * v + mimic * self._mimic[..., 1]
        frame = cv2.remap(canvas, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        light = (float(scene.light[0]) + tilt) * self._across + float(scene.light[1]) * self._down
        frame *= (light + (1 + brightness))[..., None]
        top, left = self._noise.integers(0, _GRAIN_MARGIN + 1, 2)
        frame += self._grain[top : top + scene.height, left : left + scene.width]
        return cv2.convertScaleAbs(np.maximum(frame, 0))  # rounds, and cuts off at 255


def write(path: Path, frames: Iterator[np.ndarray], fps: int, quality: int) -> None:
    """Compress RGB frames of one size to H.264 in MP4; equal frames give equal bytes."""
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # mbtree=0: x264's macroblock tree compresses a process's first clip otherwise than a later one.
        options = {"crf": str(quality), "preset": "veryfast", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # x264's bits depend on its threads
        for index, image in enumerate(frames):
            if index == 0:
                stream.height, stream.width = image.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def write_clip(path: Path, seed: int, group: int, fake: bool, strength: float = 1.0) -> None:
    """Synthesise one clip into a file."""
    scene = draw_scene(seed, group)
    write(path, render(seed, group, fake, strength), scene.fps, scene.quality)
