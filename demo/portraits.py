"""The two public-domain portraits that every clip is made from; they come inside packages of the lock file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from deepfake_detector.core.errors import ConfigError

CANVAS = 256  # side of the normalised portrait, pixels
FACE_HEIGHT = 96  # of the face's hull on it


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """Where a portrait lies, and its face: the hull from brows to chin, in pixels of the file, by hand."""

    package: str
    path: str
    sha256: str
    hull: tuple[tuple[int, int], ...]


# fmt: off
ASTRONAUT = Portrait(  # Eileen Collins; NASA, public domain (scikit-image's documentation of data.astronaut)
    package="skimage",
    path="data/astronaut.png",
    sha256="88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    hull=(
        (180, 100), (181, 125), (185, 148), (194, 165), (207, 176), (223, 180), (240, 177),
        (254, 165), (263, 145), (267, 122), (267, 98), (258, 86), (240, 82), (220, 80),
        (200, 80), (186, 86),
    ),
)
ADMIRAL = Portrait(  # Grace Hopper; James S. Davis, US Navy, public domain
    package="matplotlib",
    path="mpl-data/sample_data/grace_hopper.jpg",
    sha256="a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
    hull=(
        (172, 170), (172, 200), (178, 235), (186, 265), (200, 300), (218, 322), (245, 333),
        (265, 335), (290, 330), (315, 315), (332, 290), (344, 260), (352, 225), (356, 190),
        (354, 165), (335, 145), (300, 134), (260, 131), (220, 135), (190, 148),
    ),
)
# fmt: on
PORTRAITS = (ASTRONAUT, ADMIRAL)


def load(portrait: Portrait) -> tuple[np.ndarray, np.ndarray]:
    """The portrait with its face centred at one size, and the face's hull on it.

    Returns RGB float32 (CANVAS, CANVAS, 3) in 0..255 and float32 (points, 2) of x, y. Raises ConfigError when the
    package is not installed or ships another file, because then the set would not be the one that was measured.
    """
    spec = find_spec(portrait.package)  # finds the folder without importing the package
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"package {portrait.package}: expected it to be installed (pip install '.[demo]')")
    path = Path(spec.submodule_search_locations[0], portrait.path)
    data = path.read_bytes() if path.is_file() else b""
    digest = hashlib.sha256(data).hexdigest()
    if digest != portrait.sha256:
        raise ConfigError(f"{path}: sha256 {digest}: expected {portrait.sha256} (the demo's portrait)")
    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    hull: np.ndarray = np.array(portrait.hull, np.float32)
    low, high = hull.min(axis=0), hull.max(axis=0)
    scale = FACE_HEIGHT / float(high[1] - low[1])
    shift = CANVAS / 2 - scale * (low + high) / 2
    # Halving by area first: linear interpolation alone aliases below a scale of one half.
    if scale <= 0.5:
        image, hull, scale = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), hull / 2, scale * 2
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float32)
    canvas = cv2.warpAffine(image, matrix, (CANVAS, CANVAS), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return canvas.astype(np.float32), hull * scale + shift
