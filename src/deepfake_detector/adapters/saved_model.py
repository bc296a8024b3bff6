"""The exported folder: a SavedModel and a Keras model at once, of built-in layers only. Imports TensorFlow."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from deepfake_detector.adapters import load_check
from deepfake_detector.adapters.files import os_errors
from deepfake_detector.core.calibration import sigmoid
from deepfake_detector.core.errors import ExportError

TOLERANCE = 1e-6
CHECK_SECONDS = 600  # loading takes seconds; this only keeps a hang from lasting


def write(model: keras.Model, slope: float, offset: float, folder: Path) -> None:
    """Write `model`, which maps uint8 (n, T, S, S, 3) to float32 logits (n, 1), with its calibration on top.

    The folder loads by `tf.saved_model.load` (call it: probability), by `tf.keras.models.load_model` (probability)
    and as `signatures["serving_default"]` ({"probability", "logit"}), each float32 (n, 1). It is a SavedModel plus
    the unzipped .keras file, since Keras 3 refuses a plain SavedModel. Equal weights and calibration give equal
    bytes in model.weights.h5 and variables/; the graph's and Keras' own descriptions hold random ids and a date.
    Raises StorageError, ConfigError, and TensorFlow's errors.
    """
    calibration = keras.layers.Dense(
        1, activation="sigmoid", name="probability", dtype="float32", trainable=False
    )  # Platt: sigmoid(slope * logit + offset)
    probability = calibration(model.output)
    calibration.set_weights([np.array([[slope]], np.float32), np.array([offset], np.float32)])
    detector = keras.Model(model.input, probability, name="detector")
    both = keras.Model(model.input, {"probability": probability, "logit": model.output}, name="served")
    frames = tf.TensorSpec(model.input.shape, tf.uint8, name="frames")

    @tf.function(input_signature=[frames])
    def detect(frames: tf.Tensor) -> tf.Tensor:
        return detector(frames, training=False)

    @tf.function(input_signature=[frames])
    def serve(frames: tf.Tensor) -> dict[str, tf.Tensor]:
        return both(frames, training=False)

    module = tf.Module()
    module.model, module.__call__ = detector, detect
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve})
    archive = folder.with_name(folder.name + ".keras")
    with os_errors(archive):  # Keras names no file
        detector.save(archive)
        with zipfile.ZipFile(archive) as unzipped:
            unzipped.extractall(folder)
        archive.unlink()


def logits_function(model: keras.Model) -> Callable[[Any], NDArray[np.float32]]:
    """uint8 (n, T, S, S, 3) -> float32 (n,): the model in inference mode, as one graph for every n."""
    graph = tf.function(
        lambda frames: model(frames, training=False), input_signature=[tf.TensorSpec(model.input.shape, tf.uint8)]
    )
    return lambda frames: graph(frames).numpy()[:, 0]


def check(
    folder: Path, frames: NDArray[np.uint8], logits: NDArray[np.float32], slope: float, offset: float, scratch: Path
) -> float:
    """Load `folder` in a fresh interpreter and compare it with the checkpoint; returns the largest difference.

    frames: uint8 (n, T, S, S, 3), n >= 1; logits: float32 (n,), the checkpoint's. Probabilities of all three ways
    of loading must agree to 1e-6, and logits to 1e-6 times the larger of 1 and the logit (float32 has 24 bits).
    Raises ExportError naming the largest difference, or the last line of what the interpreter said.
    """
    frames_file, out_file = scratch / "check-frames.npy", scratch / "check-out.npz"
    np.save(frames_file, frames)
    load_afresh(folder, frames_file, out_file)
    expected = logits.astype(np.float64)
    probability = sigmoid(slope * expected + offset)
    with np.load(out_file, allow_pickle=False) as found:
        differences = {name: found[name][:, 0] - probability for name in ("saved_model", "keras", "probability")}
        differences["logit"] = (found["logit"][:, 0] - expected) / np.maximum(1.0, np.abs(expected))
    frames_file.unlink()
    out_file.unlink()
    largest = {name: float(np.abs(values).max()) for name, values in differences.items()}
    worst = max(largest, key=lambda name: (not np.isfinite(largest[name]), largest[name]))
    if not largest[worst] <= TOLERANCE:
        raise ExportError(
            f"{folder}: {worst} differs from the checkpoint by {largest[worst]:.3g} on {len(frames)} sequences: "
            f"expected at most {TOLERANCE:g}"
        )
    return largest[worst]


def load_afresh(folder: Path, frames_file: Path, out_file: Path) -> None:
    """`load_check.load` in a new interpreter that can't import this project; raises ExportError when it fails.

    It runs beside the files, with -I: neither PYTHONPATH nor the working directory can lend it anything.
    """
    command = [sys.executable, "-I", load_check.__file__, str(folder), str(frames_file), str(out_file)]
    finished = subprocess.run(
        command,
        cwd=out_file.parent,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=CHECK_SECONDS,
        check=False,
    )
    if finished.returncode < 0:
        raise RuntimeError(f"{folder}: the interpreter that checks it died of signal {-finished.returncode}")
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExportError(f"{folder}: expected it to load in a fresh interpreter ({last})")
